// tests/errors.textproto: every error of the protocol, and the calls that meet it.
#ifndef ADAMANT_TESTS_E2E_ERRORS_TABLE_H_
#define ADAMANT_TESTS_E2E_ERRORS_TABLE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "tests/e2e/errors_table.pb.h"

namespace adamant::e2e {

// The table in a file, its changes applied. Ends the program if it cannot be read.
ErrorsTable LoadErrorsTable(const std::string& path);

// A call's method, such as `StepOnce`, and its messages as they travel.
std::string MethodOf(const Call& call);
std::vector<std::string> MessagesOf(const Call& call);

// `step_once` as `StepOnce`.
std::string CamelCase(absl::string_view snake_case);

// The reasons as a table in Markdown, for docs/protocol.md.
std::string MarkdownOf(const ErrorsTable& table);

}  // namespace adamant::e2e

#endif  // ADAMANT_TESTS_E2E_ERRORS_TABLE_H_
