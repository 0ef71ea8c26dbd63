// Runs a fuzz target's body over the files of its corpus, without libFuzzer: what was found once stays found, in every
// build and with every compiler.
//
//   NAME_replay DIRECTORY
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: " << argv[0] << " DIRECTORY" << std::endl;
    return 2;
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string input((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    // Flushed first: if the body aborts, this is its input.
    std::cout << entry.path().filename().string() << std::endl;
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
    ++files;
  }
  std::cout << files << " files" << std::endl;
  return files > 0 ? 0 : 1;
}
