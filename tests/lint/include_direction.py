#!/usr/bin/env python3
"""Checks that dependencies run one way: what each folder's sources may include.

    include_direction.py ROOT

Prints each include that is not allowed as `file:line: ...`, and exits with 1 if there is any.
"""

import pathlib
import re
import sys

MESSAGES = r"adamant/v1/\w+\.pb\.h"
PUBLIC_CLIENT = r"adamant/(mocks/)?\w+\.h"
# What every program has, the server among them. It knows nothing of clients.
COMMAND_LINE = r"client/command_line/"
# The headers of files with tensors, which the server's own files have, too. They know nothing of clients.
TENSOR_FILE_HEADERS = r"client/tensor_files/(checksum|manifest|npy|safetensors)\.h"
# What the kernels are to others. The rest of the folder is compiled into the files of instruction sets alone.
KERNELS = r"kernels/(dispatch|formats|norm|rounds|scalars|update)\.h"

WIRE = [r"proto/", r"adamant/v1/", r"absl/", r"google/protobuf/", r"grpc/", r"grpcpp/"]
DOMAIN = [KERNELS, r"proto/error/", MESSAGES, r"absl/", r"google/protobuf/"]


def core(folders, but="nothing"):
    """The headers of these folders of the domain but one."""
    return rf"server/core/(?!{but}\.h){folders}/"


# Folder, or file: what it may include beside the headers of C++ and of the system. A file obeys the longest entry that
# it is in.
RULES = {
    "client/allocator": [],
    "kernels": [r"kernels/"],
    "proto": [r"proto/", MESSAGES, r"absl/", r"google/protobuf/", r"grpc/", r"grpcpp/"],
    "proto/error": [r"proto/error/", MESSAGES, r"absl/", r"google/protobuf/"],
    # Messages are plain data to it; it knows no service, no stub, and no call.
    "server/core": [core("(base|memory|spec|backend|set)", but="set/set_rep"), r"server/core/(journal|registry|restoration)\.h", *DOMAIN],
    "server/core/restoration.cc": [core("(base|memory|spec|backend|set)"), r"server/core/(journal|restoration)\.h", *DOMAIN],
    "server/core/base": [core("base"), *DOMAIN],
    "server/core/memory": [core("(base|memory)"), *DOMAIN],
    "server/core/spec": [core("(base|memory|spec)"), *DOMAIN],
    "server/core/backend": [core("(base|memory|spec|backend)"), *DOMAIN],
    "server/core/backend/cuda_backend.cc": [core("(base|memory|spec|backend)"), r"kernels/cuda_update\.h", *DOMAIN],
    # The door to a set knows its rooms, and none of them the door.
    "server/core/set": [core("(base|memory|spec|backend|set)", but="set/parameter_set"), r"server/core/journal\.h", *DOMAIN],
    "server/core/set/state_digest.cc": [core("(base|memory|spec|backend|set)", but="set/parameter_set"), r"openssl/sha\.h", *DOMAIN],
    "server/core/set/parameter_set.cc": [core("(base|memory|spec|backend|set)"), r"server/core/journal\.h", *DOMAIN],
    "server": [r"server/(?!core/set/set_rep\.h)", KERNELS, COMMAND_LINE, *WIRE],
    # Makes sets outlive the process. The domain knows no files; this knows no calls.
    "server/store": [
        r"server/store/",
        core("(base|memory|spec|backend|set)", but="set/set_rep"),
        r"server/core/(journal|registry|restoration)\.h",
        TENSOR_FILE_HEADERS,
        r"sqlite3\.h",
        *DOMAIN,
    ],
    "client": [r"client/", PUBLIC_CLIENT, *WIRE],
    "client/c": [r"client/c/", PUBLIC_CLIENT, r"proto/wire/status\.h", MESSAGES, r"absl/", r"google/protobuf/"],
    "client/command_line": [COMMAND_LINE, MESSAGES, r"absl/"],
    "client/tensor_files": [TENSOR_FILE_HEADERS, r"client/tensor_files/tensor_file\.h", r"absl/", r"nlohmann/"],
    "client/tensor_files/checksum.cc": [TENSOR_FILE_HEADERS, r"absl/", r"isa-l/"],
    # Its JSON is protobuf's.
    "client/tensor_files/manifest.cc": [TENSOR_FILE_HEADERS, *DOMAIN[1:]],
    "client/tensor_files/manifest.h": [r"client/tensor_files/manifest\.pb\.h", r"absl/"],
    "client/tensor_files/tensor_file.cc": [r"client/tensor_files/", r"client/src/formats\.h", r"absl/"],
    "client/programs": [r"client/programs/", PUBLIC_CLIENT, COMMAND_LINE, MESSAGES, r"absl/"],
    # The rest of protobuf is for its JSON.
    "client/programs/cli": [
        r"client/programs/",
        r"client/tensor_files/(checksum|manifest|tensor_file)\.h",
        PUBLIC_CLIENT,
        COMMAND_LINE,
        MESSAGES,
        r"absl/",
        r"google/protobuf/",
        r"nlohmann/",
        r"CLI/",
    ],
    # What users include knows nothing that is not installed.
    "client/include": [PUBLIC_CLIENT, MESSAGES, r"absl/", r"grpcpp/"],
    "client/mocks": [PUBLIC_CLIENT, MESSAGES, r"absl/", r"gmock/"],
    "client/quickstart": [PUBLIC_CLIENT, r"absl/"],
}
SYSTEM = re.compile(r"<([^/]+|(sys|linux|netinet|arpa)/.*)>")
INCLUDE = re.compile(r'\s*#\s*include\s*([<"]([^>"]+)[>"])')


def violations(root):
    for folder in sorted({rule.split("/")[0] for rule in RULES}):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".h", ".cc"):
                continue
            name = path.relative_to(root).as_posix()
            if name.startswith("client/examples/"):  # Other languages, and what their tools put there.
                continue
            rule = max((rule for rule in RULES if (name + "/").startswith(rule + "/")), key=len)
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                include = INCLUDE.match(line)
                if not include or SYSTEM.fullmatch(include[1]):
                    continue
                if not any(re.match(allowed, include[2]) for allowed in RULES[rule]):
                    yield f"{name}:{number}: {rule} may not include {include[2]}"


found = list(violations(pathlib.Path(sys.argv[1])))
print("\n".join(found) if found else "Every include is allowed.")
sys.exit(1 if found else 0)
