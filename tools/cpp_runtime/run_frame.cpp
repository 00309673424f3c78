// Runs an exported model on a dumped frame, and compares every output with what was dumped.
//
//   run_frame EXPORT_FOLDER FRAME_FOLDER [TOLERANCE]
//
// The exit status is 1 if an output differs by more than the tolerance, 1e-3 if none is given.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iterator>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "frame.h"

namespace fs = std::filesystem;

static ONNXTensorElementDataType type_of(const std::string& dtype) {
  if (dtype == "float32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  if (dtype == "uint8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  if (dtype == "bool") return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  throw std::runtime_error("the type " + dtype + " is not known to this program");
}

// A tensor on memory that stays where it is; nothing is copied.
static Ort::Value view(const Ort::MemoryInfo& memory, const Array& array, const void* data) {
  const size_t size = static_cast<size_t>(array.count()) * bytes_of(array.dtype);
  // ONNX Runtime's interface has no constant tensors; inputs are not written to.
  return Ort::Value::CreateTensor(memory, const_cast<void*>(data), size, array.shape.data(),
                                  array.shape.size(), type_of(array.dtype));
}

template <typename T>
static double largest_difference(const T* found, const char* bytes, int64_t count) {
  const T* expected = reinterpret_cast<const T*>(bytes);
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double apart = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
    if (std::isnan(apart)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, apart);
  }
  return largest;
}

static double compare(const Ort::Value& found, const Array& expected) {
  const auto info = found.GetTensorTypeAndShapeInfo();
  if (info.GetShape() != expected.shape || info.GetElementType() != type_of(expected.dtype)) {
    throw std::runtime_error(expected.name + " has another shape or type than was dumped");
  }
  const int64_t count = expected.count();
  const char* bytes = expected.bytes.data();
  if (expected.dtype == "float32")
    return largest_difference(found.GetTensorData<float>(), bytes, count);
  if (expected.dtype == "int64")
    return largest_difference(found.GetTensorData<int64_t>(), bytes, count);
  if (expected.dtype == "int32")
    return largest_difference(found.GetTensorData<int32_t>(), bytes, count);
  return largest_difference(found.GetTensorData<uint8_t>(), bytes, count);
}

static double run(const fs::path& folder, const Frame& frame) {
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "bevstack");
  Ort::SessionOptions options;
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::map<std::string, Ort::Value> made;  // outputs so far, which later graphs read
  double largest = 0;
  for (const GraphRun& part : frame.runs) {
    Ort::Session session(env, (folder / part.file).c_str(), options);
    std::vector<const char*> input_names, output_names;
    std::vector<Ort::Value> inputs;
    for (const Array& array : part.inputs) {
      input_names.push_back(array.name.c_str());
      const void* data = array.bytes.data();
      if (array.from_before) {
        if (made.count(array.name) == 0) throw std::runtime_error("no graph makes " + array.name);
        data = made.at(array.name).GetTensorMutableData<char>();
      }
      inputs.push_back(view(memory, array, data));
    }
    for (const Array& array : part.outputs) output_names.push_back(array.name.c_str());
    auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(),
                               inputs.size(), output_names.data(), output_names.size());
    for (size_t i = 0; i < outputs.size(); ++i) {
      const double apart = compare(outputs[i], part.outputs[i]);
      std::printf("%-18s %-24s %.2e\n", part.file.c_str(), output_names[i], apart);
      largest = std::max(largest, apart);
      made.insert_or_assign(output_names[i], std::move(outputs[i]));
    }
  }
  return largest;
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: run_frame EXPORT_FOLDER FRAME_FOLDER [TOLERANCE]\n");
    return 2;
  }
  try {
    const double tolerance = argc == 4 ? std::stod(argv[3]) : 1e-3;
    const Frame frame = read_frame(argv[2]);
    const double largest = run(argv[1], frame);
    std::printf("frame %s: largest difference %.2e\n", frame.token.c_str(), largest);
    return largest <= tolerance ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_frame: %s\n", error.what());
    return 2;
  }
}
