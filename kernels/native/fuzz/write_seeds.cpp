// Inputs from which the fuzzers start: write_seeds FOLDER fills FOLDER/artifact and FOLDER/state.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "artifact_writer.h"
#include "interface_writer.h"
#include "program_writer.h"

using lram_testing::Shape;

namespace {

void write(const std::string& path, const std::vector<std::uint8_t>& content) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(content.data(), 1, content.size(), file) != content.size()) {
    std::perror(path.c_str());
    std::exit(1);
  }
  std::fclose(file);
}

Shape smallest(lram::Layout layout) {
  Shape shape;
  shape.layout = layout;
  shape.hidden = shape.inner = 16;
  shape.blocks = shape.heads = 1;
  shape.slstm_at = {};
  return shape;
}

void write_artifacts(const std::string& folder) {
  int number = 0;
  const auto add = [&](const Shape& shape) {
    write(folder + "/" + std::to_string(number++), lram_testing::make_artifact(shape));
  };
  for (const lram::Layout layout :
       {lram::Layout::tiled_float32, lram::Layout::tiled_int8, lram::Layout::tiled_int8g, lram::Layout::tiled_int4})
    for (const int planes : {1, 2}) {
      Shape shape = smallest(layout);
      shape.planes = planes;
      add(shape);
      shape.hidden = 64;
      shape.slstm_at = {0};
      add(shape);
    }
  for (const lram::Layout layout :
       {lram::Layout::tiled_float32, lram::Layout::tiled_int8, lram::Layout::tiled_int8g, lram::Layout::tiled_int4})
    for (Shape shape : {lram_testing::mamba(layout), lram_testing::transformer(true, layout),
                        lram_testing::transformer(false, layout)}) {
      shape.blocks = 1;
      shape.inner = 20;
      add(shape);
    }
  Shape unknown = smallest(lram::Layout::tiled_float32);
  unknown.name = "";
  unknown.source = 0;
  add(unknown);
  Shape long_name = smallest(lram::Layout::tiled_float32);
  long_name.name = "\xe2\x82\xac \xf0\x9f\xa6\xbe and nineteen more";
  add(long_name);
  Shape robot = smallest(lram::Layout::tiled_float32);
  robot.limit = 1;
  robot.said = lram_testing::interface_of(
      50, {{"observation", false, std::vector<lram::ElementFacts>(20, lram_testing::element("joint", "rad", -3, 3))},
           {"action", true, {lram_testing::element("", "N*m", -1, 1, 0.5F, 0)}, 2}});
  add(robot);
  Shape image = smallest(lram::Layout::tiled_int4);
  image.images = image.discrete = true;
  image.said = lram_testing::interface_of(
      30, {{"action", true, std::vector<lram::ElementFacts>(18, lram_testing::element("choice", ""))}});
  add(image);
  for (const std::vector<std::uint8_t>& program : lram_testing::program_seeds())
    write(folder + "/" + std::to_string(number++), program);
}

void write_states(const std::string& folder) {
  int number = 0;
  for (std::uint8_t model = 0; model < 20; ++model)  // more than the fuzzer has, twice
    for (const float value : {0.0F, 1.0F, -9e16F, -3e38F, 1e-40F}) {
      std::vector<std::uint8_t> bytes = {model};
      for (int i = 0; i < 600; ++i) {
        const auto* begin = reinterpret_cast<const std::uint8_t*>(&value);
        bytes.insert(bytes.end(), begin, begin + sizeof value);
      }
      write(folder + "/" + std::to_string(number++), bytes);
    }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "expected a folder\n");
    return 2;
  }
  const std::string folder = arguments[1];
  for (const std::string& path : {folder, folder + "/artifact", folder + "/state"}) mkdir(path.c_str(), 0777);
  write_artifacts(folder + "/artifact");
  write_states(folder + "/state");
  return 0;
}
