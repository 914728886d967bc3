#include "engine.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "error.h"
#include "model.h"
#include "program/program.h"

namespace lram {
namespace {

int checked_threads(const lram_options& options) {
  if (options.threads < 1 || options.threads > 1024)
    throw Error(LRAM_ERROR_ARGUMENT, "threads: expected 1 to 1024, got " + std::to_string(options.threads));
  if (options.spin_microseconds < 0 || options.spin_microseconds > 1000000)
    throw Error(LRAM_ERROR_ARGUMENT,
                "spin_microseconds: expected 0 to 1000000, got " + std::to_string(options.spin_microseconds));
  if (options.state_format != LRAM_STATE_FLOAT32 && options.state_format != LRAM_STATE_LAZY_HALF &&
      options.state_format != LRAM_STATE_AS_EXPORTED)
    throw Error(LRAM_ERROR_ARGUMENT, "state_format: expected 0 to 2, got " + std::to_string(options.state_format));
  if (options.huge_pages != LRAM_HUGE_PAGES_NONE && options.huge_pages != LRAM_HUGE_PAGES_STATE &&
      options.huge_pages != LRAM_HUGE_PAGES_ALL)
    throw Error(LRAM_ERROR_ARGUMENT, "huge_pages: expected 0 to 2, got " + std::to_string(options.huge_pages));
  return options.threads;
}

std::vector<int> pinned_cpus(const lram_options& options) {
  if (options.cpus == nullptr) return {};
  if (options.cpu_count < 1)
    throw Error(LRAM_ERROR_ARGUMENT, "cpu_count: expected at least 1, got " + std::to_string(options.cpu_count));
  return {options.cpus, options.cpus + options.cpu_count};
}

int checked_batch(int batch) {
  if (batch < 1 || batch > 4096)
    throw Error(LRAM_ERROR_ARGUMENT, "batch: expected 1 to 4096, got " + std::to_string(batch));
  return batch;
}

std::size_t product(const std::vector<std::size_t>& extents) {
  return std::accumulate(extents.begin(), extents.end(), std::size_t{1}, std::multiplies<>());
}

std::unique_ptr<Engine> open_file(MappedFile file, const lram_options& options) {
  if (file.starts_with(kMagic)) return std::make_unique<Model>(std::move(file), options);
  if (file.starts_with(kProgramMagic)) return open_program(std::move(file), options);
  file.refuse_kind();
}

}  // namespace

std::size_t small_step_bytes = std::size_t{4} << 20;

std::size_t element_bytes(Element element) {
  switch (element) {
    case Element::uint8:
      return 1;
    case Element::int64:
      return 8;
    default:
      return 4;
  }
}

std::size_t Field::size() const { return product(extents); }
std::size_t StateField::size() const { return product(extents); }

Engine::Engine(const lram_options& options)
    : threads_(checked_threads(options)),
      cpus_(pinned_cpus(options)),
      spin_microseconds_(options.spin_microseconds),
      lock_memory_(options.lock_memory != 0),
      huge_pages_(options.huge_pages),
      safety_(options.safety != 0),
      kernels_(choose_kernels()),
      generation_(fork_generation()) {}

Engine::~Engine() {
  // no thread is there to be waited for, and a lock may be held for ever: a child gives up its copy of the pool
  if (forked()) {
    [[maybe_unused]] ThreadPool* given_up = pool_.release();
  }
}

void Engine::start_threads(int most) {
  pool_ = std::make_unique<ThreadPool>(std::min(threads_, most), cpus_, spin_microseconds_);
}

std::size_t Engine::state_size() const {
  return std::accumulate(state_fields_.begin(), state_fields_.end(), std::size_t{0},
                         [](std::size_t sum, const StateField& field) { return sum + field.size(); });
}

Episodes::Episodes(Engine& engine, int batch) : engine_(engine), batch_(checked_batch(batch)) {}

std::unique_ptr<Engine> open_engine(const std::string& path, const lram_options& options) {
  return open_file(MappedFile(path), options);
}

std::unique_ptr<Engine> open_engine(const std::uint8_t* bytes, std::size_t size) {
  lram_options options = {};
  options.threads = options.safety = 1;
  options.state_format = LRAM_STATE_AS_EXPORTED;
  return open_file(MappedFile(bytes, size), options);
}

}  // namespace lram
