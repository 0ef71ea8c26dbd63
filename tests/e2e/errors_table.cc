#include "tests/e2e/errors_table.h"

#include <google/protobuf/text_format.h>
#include <google/protobuf/unknown_field_set.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace adamant::e2e {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

[[noreturn]] void Fail(absl::string_view message) {
  std::cerr << "errors table: " << message << "\n";
  std::exit(1);
}

struct Place {
  Message* message;
  const FieldDescriptor* field;  // of `message`; none: `message` itself is meant
  int index;                     // in the field; -1: all of it
};

// Where `path`, such as `spec.tensors[2].name`, leads from `message`.
Place Find(Message* message, absl::string_view path) {
  Place place = {message, nullptr, -1};
  for (const absl::string_view step : absl::StrSplit(path, '.')) {
    const std::pair<absl::string_view, absl::string_view> name_and_index = absl::StrSplit(step, '[');
    Message* at = place.message;
    const FieldDescriptor* field = at->GetDescriptor()->FindFieldByName(std::string(name_and_index.first));
    if (field == nullptr) Fail(absl::StrCat("no field ", path));
    int index = -1;
    if (!name_and_index.second.empty() &&
        !absl::SimpleAtoi(name_and_index.second.substr(0, name_and_index.second.size() - 1), &index)) {
      Fail(absl::StrCat("no index in ", path));
    }
    place = {at, field, index};
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (field->is_repeated() && index < 0) continue;
    const Reflection* reflection = at->GetReflection();
    place = {field->is_repeated() ? reflection->MutableRepeatedMessage(at, field, index)
                                  : reflection->MutableMessage(at, field),
             nullptr, -1};
  }
  return place;
}

std::string Times(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

// Numbers the copies of a message in its first field.
void Number(Message* message, int number) {
  const FieldDescriptor* field = message->GetDescriptor()->field(0);
  const Reflection* reflection = message->GetReflection();
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_STRING) return;
  reflection->SetString(message, field, absl::StrCat(reflection->GetString(*message, field), number));
}

void Multiply(const Place& place, int times) {
  if (place.field == nullptr) Fail("only a field has times");
  Message* message = place.message;
  const FieldDescriptor* field = place.field;
  const Reflection* reflection = message->GetReflection();
  const bool is_string = field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
  if (is_string && !field->is_repeated()) {
    reflection->SetString(message, field, Times(reflection->GetString(*message, field), times));
    return;
  }
  for (int i = 1; i < times; ++i) {
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT64:
        reflection->AddInt64(message, field, reflection->GetRepeatedInt64(*message, field, 0));
        break;
      case FieldDescriptor::CPPTYPE_FLOAT:
        reflection->AddFloat(message, field, reflection->GetRepeatedFloat(*message, field, 0));
        break;
      case FieldDescriptor::CPPTYPE_MESSAGE: {
        Message* copy = reflection->AddMessage(message, field);
        copy->CopyFrom(reflection->GetRepeatedMessage(*message, field, 0));
        Number(copy, i);
        break;
      }
      default:
        Fail(absl::StrCat("times: not for ", field->full_name()));
    }
  }
}

void Apply(const Call::Change& change, Call* call) {
  const Place place = Find(call, change.path());
  if (change.times() > 0) Multiply(place, change.times());
  if (change.unknown_field() > 0) {
    if (place.field != nullptr) Fail(absl::StrCat("not a message: ", change.path()));
    place.message->GetReflection()->MutableUnknownFields(place.message)->AddVarint(change.unknown_field(), 1);
  }
}

void ApplyChanges(Call* call) {
  for (const Call::Change& change : call->changes()) Apply(change, call);
}

// The field that has the call's messages, or null.
const FieldDescriptor* MessagesField(const Call& call) {
  std::vector<const FieldDescriptor*> fields;
  call.GetReflection()->ListFields(call, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->number() < Call::kMethodFieldNumber) return field;
  }
  return nullptr;
}

// `ERROR_REASON_STALLED` as `STALLED`.
std::string ShortName(v1::ErrorReason reason) {
  return v1::ErrorReason_Name(reason).substr(std::string("ERROR_REASON_").size());
}

}  // namespace

ErrorsTable LoadErrorsTable(const std::string& path) {
  std::ifstream file(path);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  ErrorsTable table;
  if (!file || !google::protobuf::TextFormat::ParseFromString(text, &table)) Fail(absl::StrCat("cannot read ", path));
  for (Call& call : *table.mutable_setup()) ApplyChanges(&call);
  for (Row& row : *table.mutable_rows()) ApplyChanges(row.mutable_call());
  return table;
}

std::string MethodOf(const Call& call) {
  const FieldDescriptor* field = MessagesField(call);
  return field != nullptr ? CamelCase(field->name()) : call.method();
}

std::vector<std::string> MessagesOf(const Call& call) {
  std::vector<std::string> messages;
  if (const FieldDescriptor* field = MessagesField(call); field != nullptr) {
    const Reflection* reflection = call.GetReflection();
    for (int i = 0; i < reflection->FieldSize(call, field); ++i) {
      messages.push_back(reflection->GetRepeatedMessage(call, field, i).SerializePartialAsString());
    }
  }
  messages.insert(messages.end(), call.raw().begin(), call.raw().end());
  return messages;
}

std::string CamelCase(absl::string_view snake_case) {
  std::string camel_case;
  for (const absl::string_view word : absl::StrSplit(snake_case, '_')) {
    absl::StrAppend(&camel_case, std::string(1, absl::ascii_toupper(word.front())), word.substr(1));
  }
  return camel_case;
}

std::string MarkdownOf(const ErrorsTable& table) {
  std::string text = "| Reason | Code | What has happened | What to do |\n|---|---|---|---|\n";
  for (const Reason& reason : table.reasons()) {
    absl::StrAppend(&text, "| `", ShortName(reason.reason()), "` | `", Code_Name(reason.code()), "`",
                    reason.retry_info() ? ", RetryInfo" : "", " | ", reason.meaning(), " | ", reason.remedy(), " |\n");
  }
  return text;
}

}  // namespace adamant::e2e
