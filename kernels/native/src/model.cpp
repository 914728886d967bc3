#include "model.h"

#include <algorithm>

#include "error.h"

namespace lram {
namespace {

// Checks the options that do not belong to one member, before anything is read.
lram_options checked(lram_options options) {
  if (options.threads < 1 || options.threads > 1024)
    throw Error(LRAM_ERROR_ARGUMENT, "threads: expected 1 to 1024, got " + std::to_string(options.threads));
  if (options.spin_microseconds < 0 || options.spin_microseconds > 1000000)
    throw Error(LRAM_ERROR_ARGUMENT,
                "spin_microseconds: expected 0 to 1000000, got " + std::to_string(options.spin_microseconds));
  if (options.state_format != LRAM_STATE_FLOAT32 && options.state_format != LRAM_STATE_LAZY_HALF)
    throw Error(LRAM_ERROR_ARGUMENT, "state_format: expected 0 or 1, got " + std::to_string(options.state_format));
  return options;
}

std::vector<int> pinned_cpus(const lram_options& options) {
  if (options.cpus == nullptr) return {};
  if (options.cpu_count < 1)
    throw Error(LRAM_ERROR_ARGUMENT, "cpu_count: expected at least 1, got " + std::to_string(options.cpu_count));
  return {options.cpus, options.cpus + options.cpu_count};
}

}  // namespace

Model::Model(const std::string& path, const lram_options& options)
    : artifact_(path, checked(options).verify != 0, options.lock_memory != 0),
      kernels_(choose_kernels()),
      lock_memory_(options.lock_memory != 0),
      generation_(fork_generation()),
      encoders_(artifact_),
      head_(artifact_) {
  make_blocks(options.state_format == LRAM_STATE_LAZY_HALF);
  pool_ = std::make_unique<ThreadPool>(std::min(options.threads, std::max(needs_.units, needs_.shares)),
                                       pinned_cpus(options), options.spin_microseconds);
}

Model::Model(const std::uint8_t* bytes, std::size_t size)
    : artifact_(bytes, size, false),
      kernels_(choose_kernels()),
      lock_memory_(false),
      generation_(fork_generation()),
      encoders_(artifact_),
      head_(artifact_) {
  make_blocks(false);
  pool_ = std::make_unique<ThreadPool>(1, std::vector<int>(), 0);
}

Model::~Model() {
  // no thread is there to be waited for, and a lock may be held for ever: a child gives up its copy of the pool
  if (forked()) {
    [[maybe_unused]] ThreadPool* given_up = pool_.release();
  }
}

void Model::make_blocks(bool lazy_state) {
  for (int number = 0; number < artifact_.blocks(); ++number) {
    blocks_.push_back(make_block({artifact_, number, kernels_, lazy_state}));
    const Block& block = *blocks_.back();
    needs_.units = std::max(needs_.units, block.needs().units);
    needs_.width = std::max(needs_.width, block.needs().width);
    needs_.scratch = std::max(needs_.scratch, block.needs().scratch);
    needs_.shared = std::max(needs_.shared, block.needs().shared);
    needs_.shares = std::max(needs_.shares, block.needs().shares);
    needs_.columns = std::max(needs_.columns, block.needs().columns);
    needs_.of_thread = std::max(needs_.of_thread, block.needs().of_thread);
    needs_.common = std::max(needs_.common, block.needs().common);
    needs_.common_per_row = std::max(needs_.common_per_row, block.needs().common_per_row);
    for (std::size_t part = 0; part < block.parts().size(); ++part) {
      const StatePart& described = block.parts()[part];
      const std::string name = "state." + std::to_string(number) + "." + described.name;
      state_tensors_.push_back({name, static_cast<std::size_t>(number), part, described.size(), &described});
      state_size_ += described.size();
    }
  }
}

}  // namespace lram
