// A frame that `bevstack dump-frame` wrote: perception/runtime/dump.py describes the folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

struct Array {
  std::string name;
  std::string dtype;  // numpy's name
  std::vector<int64_t> shape;
  bool from_before = false;  // an input that is the output of this name of a graph before
  std::vector<char> bytes;   // none then

  int64_t count() const;
};

struct GraphRun {
  std::string file;  // of the graph, in the export folder
  std::vector<Array> inputs;
  std::vector<Array> outputs;
};

struct Frame {
  std::string token;
  std::vector<GraphRun> runs;  // in the order in which they have to run
};

// Bytes of one number; throws std::runtime_error for a type that no graph has.
size_t bytes_of(const std::string& dtype);

// Throws std::runtime_error naming the file and what is wrong with it.
Frame read_frame(const std::filesystem::path& folder);
