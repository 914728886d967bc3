// Where a run is, as a file.
#pragma once
#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace lram::loop {

struct SavedRun {
  std::array<unsigned char, 32> source = {};  // of what weights; zeros: not known
  float target = 0;                           // scaled
  float return_to_go = 0;                     // likewise
  bool is_first = true;
  std::vector<float> state;  // as lram_state_save has it
};

// Whole or not at all. Throws Error.
void write_run(const std::string& file, const SavedRun& run);
// False where there is no such file. Throws Error where it is none that write_run wrote, with `count` floats of state.
bool read_run(const std::string& file, std::size_t count, SavedRun& run);

}  // namespace lram::loop
