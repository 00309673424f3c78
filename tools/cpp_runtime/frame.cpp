#include "frame.h"

#include <fstream>
#include <sstream>
#include <stdexcept>

namespace fs = std::filesystem;

int64_t Array::count() const {
  int64_t product = 1;
  for (int64_t edge : shape) product *= edge;
  return product;
}

size_t bytes_of(const std::string& dtype) {
  if (dtype == "float32" || dtype == "int32") return 4;
  if (dtype == "int64") return 8;
  if (dtype == "uint8" || dtype == "bool") return 1;
  throw std::runtime_error("the type " + dtype + " is not known to this program");
}

static std::vector<char> read_bytes(const fs::path& path, size_t expected) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(path.string() + " cannot be read; dump the frame again");
  const auto found = static_cast<size_t>(file.tellg());
  if (found != expected) {
    throw std::runtime_error(path.string() + " has " + std::to_string(found) + " bytes, not " +
                             std::to_string(expected) + "; dump the frame again");
  }
  std::vector<char> bytes(expected);
  file.seekg(0);
  file.read(bytes.data(), static_cast<std::streamsize>(expected));
  return bytes;
}

static Array read_array(std::istringstream& words, const fs::path& folder) {
  Array array;
  size_t axes = 0;
  std::string file;
  words >> array.name >> array.dtype >> axes;
  array.shape.resize(axes <= 8 ? axes : 0);
  for (int64_t& edge : array.shape) words >> edge;
  words >> file;
  if (!words || axes > 8) throw std::runtime_error("expected NAME DTYPE AXES LENGTHS FILE");
  array.from_before = file == "-";
  if (!array.from_before) {
    const size_t size = static_cast<size_t>(array.count()) * bytes_of(array.dtype);
    array.bytes = read_bytes(folder / file, size);
  }
  return array;
}

Frame read_frame(const fs::path& folder) {
  const fs::path path = folder / "frame.txt";
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line != "bevstack-frame 1") {
    throw std::runtime_error(path.string() +
                             " is no dumped frame of format 1; write one with bevstack dump-frame");
  }
  Frame frame;
  for (int number = 2; std::getline(file, line); ++number) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    try {
      if (kind == "token") {
        words >> frame.token;
      } else if (kind == "graph") {
        words >> frame.runs.emplace_back().file;
      } else if (frame.runs.empty()) {
        throw std::runtime_error("expected a graph first");
      } else if (kind == "input") {
        frame.runs.back().inputs.push_back(read_array(words, folder));
      } else if (kind == "output") {
        frame.runs.back().outputs.push_back(read_array(words, folder));
      } else {
        throw std::runtime_error("unknown word " + kind);
      }
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(path.string() + ", line " + std::to_string(number) + ": " +
                               error.what());
    }
  }
  return frame;
}
