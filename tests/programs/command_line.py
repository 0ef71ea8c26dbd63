#!/usr/bin/env python3
"""Checks what a program does with --help, --version and a flag that it does not have.

    command_line.py PROGRAM SOURCE VERSION

SOURCE is the file that defines the program's flags: --help has to show each of them. Exits with 1 if anything is not as it
should be.
"""

import pathlib
import re
import subprocess
import sys

program, source, version = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
faults = []


def run(*arguments):
    ended = subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def expect(holds, fault, *ended):
    if not holds:
        faults.append("\n".join([fault, *map(str, ended)]))


flags = re.findall(r"^ABSL_FLAG\(.+?,\s+(\w+),", source.read_text(), re.MULTILINE | re.DOTALL)
expect(flags, f"there are no flags in {source}")

for argument in ("--help", "-h"):
    code, output, error = ended = run(argument)
    expect(code == 0 and not error, f"{argument} does not end well", *ended)
    expect(output.startswith(f"{program.name}: "), f"{argument} does not begin with the program's name", *ended)
    shown = re.findall(r"^  --(\w+)=.*\n      \w.+$", output, re.MULTILINE)
    expect(sorted(shown) == sorted(flags), f"{argument} shows other flags than {sorted(flags)}", *ended)

expect(run("--helpshort")[1].count("\n    --") == len(flags), "--helpshort does not show the flags", *run("--helpshort"))
expect(run("--version") == (0, f"{program.name} {version}\n", ""), "--version does not say the version", *run("--version"))

code, output, error = ended = run("--no_such_flag", "--", "--help")
expect(code == 1 and not output and "no_such_flag" in error, "a flag that it does not have is no error", *ended)

print("\n\n".join(faults) if faults else f"{program.name} shows its {len(flags)} flags.")
sys.exit(1 if faults else 0)
