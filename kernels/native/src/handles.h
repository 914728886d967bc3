// What the handles of lram.h hold; also for the Python module and for tests, which look behind them.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "engine.h"
#include "lram.h"
#include "safety.h"

struct lram_model {
  explicit lram_model(std::unique_ptr<lram::Engine> opened);

  std::unique_ptr<lram::Engine> engine;
  // For lram_step: which member of lram_inputs or lram_outputs each input or output is; and the first names of those
  // that are none of theirs, "" if there are none.
  std::vector<std::size_t> input_members;
  std::vector<std::size_t> output_members;
  std::string own_names;
};

struct lram_state {
  lram_model& model;
  std::unique_ptr<lram::Episodes> episodes;
  lram::Safety safety;
};
