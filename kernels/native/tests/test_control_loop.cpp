// What a step promises to a control loop: it allocates nothing, calls no kernel and meets no page fault; it gives back
// the processor and its floating-point mode; what it refuses changes nothing.
#include <dirent.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <csignal>
#include <cstring>
#include <ctime>
#include <limits>
#include <new>

#include "loop_robots.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using namespace lram_testing;

namespace {

std::atomic<long> allocations{0};

// Everything steps need, prepared, so that between two steps nothing happens.
class Loop {
 public:
  Loop(const ModelPointer& model, int batch)
      : rows_(static_cast<std::size_t>(batch)), state(create_state(model, batch)) {
    CHECK_OK(lram_describe(model.get(), &about));
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    observation.resize(rows_ * about.observation_size);
    for (float& value : observation) value = normal(random);
    image.resize(observation.size());
    for (std::uint8_t& value : image) value = static_cast<std::uint8_t>(random());
    return_to_go.assign(rows_, 0.5F);
    reward.assign(rows_, 0.25F);
    is_first.assign(rows_, 0);
    action.assign(rows_ * about.action_size, 0);
    logits.resize(rows_ * about.logits_size);
  }

  lram_status step() {
    const void* observed =
        about.observation == LRAM_IMAGE ? static_cast<const void*>(image.data()) : observation.data();
    const lram_inputs inputs = {observed, return_to_go.data(), reward.data(), is_first.data()};
    const lram_outputs outputs = {action.data(), logits.data()};
    return lram_step(state.get(), &inputs, &outputs);
  }

  // Two episodes, the second of the last row only, each longer than the period in which lazy states are rewritten.
  bool run() {
    bool fine = true;
    for (std::size_t step = 0; step < 80; ++step) {
      is_first.assign(rows_, step == 0 ? 1.0F : 0.0F);
      if (step == 40) is_first[rows_ - 1] = 1;
      fine = this->step() == LRAM_OK && fine;
    }
    return fine;
  }

 private:
  std::size_t rows_;

 public:
  lram_description about = {};
  StatePointer state;
  std::vector<float> observation;
  std::vector<std::uint8_t> image;
  std::vector<float> return_to_go;
  std::vector<float> reward;
  std::vector<float> is_first;
  std::vector<std::int64_t> action;
  std::vector<float> logits;
};

// One model of every kind of weights, of observations and of states.
template <class Check>
void for_each_kind(int threads, Check check) {
  for (const lram::Layout layout : {lram::Layout::tiled_float32, lram::Layout::tiled_int8, lram::Layout::tiled_int4})
    for (const bool images : {false, true})
      for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
        if (images && layout != lram::Layout::tiled_int8) continue;  // one kind of images will do
        Shape shape;
        shape.layout = layout;
        shape.images = shape.discrete = images;
        if (layout == lram::Layout::tiled_int4) shape.inner = 256;
        const TemporaryFile file(make_artifact(shape));
        check(open_model(file, "", threads, format));
      }
  Shape wide;  // its state in huge pages, where there are any
  wide.blocks = wide.heads = 1;
  wide.inner = 768;
  wide.slstm_at = {};
  const TemporaryFile wide_file(make_artifact(wide));
  check(open_model(wide_file, "", threads));
  Shape held;  // to a safety envelope
  held.limit = 1;
  held.said = interface_of(50, {{"action", true, {element("", "N*m", -1, 1, 0.5F, 0)}, 2}});
  const TemporaryFile file(make_artifact(held));
  check(open_model(file, "", threads));
}

// A loop as somebody else's controller calls it, prepared: good readings and such as are bridged, episodes, actions
// that were not sent, lines between two actions.
class Controller {
 public:
  explicit Controller(const TemporaryFile& file)
      : policy(file.path()),
        loop(policy, options()),
        reading(policy.observations()[0].size, 0.5F),
        spoilt(reading),
        held(policy.action().size) {
    spoilt[0] = NAN;
  }

  bool run() {
    bool fine = true;
    for (int step = 0; step < 40; ++step) {
      if (step % 20 == 0) loop.begin(held.data());
      for (int tick = 0; tick < 4; ++tick) {
        now += 0.005;
        reading[0] += 0.01F;
        const auto told = step % 7 == 3   ? loop.update(now, spoilt)
                          : step % 7 == 5 ? loop.update(now, lram::loop::Reading::missing("late"))
                                          : loop.update(now, reading);
        fine = fine && !told.stop && told.action != nullptr;
        if (step % 5 == 4) loop.not_sent("bus is busy");
        loop.reward(0.25);
      }
      loop.took(0.001);
    }
    return fine && loop.account().bridged > 0 && loop.account().of(lram::loop::Fault::not_sent) > 0;
  }

 private:
  static lram::loop::Options options() {
    lram::loop::Options chosen;
    chosen.rate = 50;
    chosen.ticks = 4;
    chosen.linear = true;
    chosen.frozen = 3;
    return chosen;
  }

 public:
  lram::loop::Policy policy;
  lram::loop::Loop loop;
  Numbers reading;
  Numbers spoilt;
  Numbers held;
  double now = 0;
};

std::vector<std::vector<std::uint8_t>> loop_programs() {
  return {network(LRAM_REWARD_OBSERVED), network(LRAM_REWARD_NONE), follower(0.5F)};
}

// Whether a call succeeds in a process that may not call the kernel.
template <class Call>
bool runs_without_the_kernel(Call call) {
  const auto child = static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, 0));
  if (child == 0) {  // not by fork(): the model is to be used in the child, which its one thread allows
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) syscall(SYS_exit, 2);
    syscall(SYS_exit, call() ? 0 : 1);  // any other call than this one ends the process with SIGKILL
  }
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

double processor_seconds() {
  timespec now = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::vector<int> thread_ids() {
  const std::unique_ptr<DIR, int (*)(DIR*)> tasks(opendir("/proc/self/task"), closedir);
  std::vector<int> ids;
  while (const dirent* entry = tasks == nullptr ? nullptr : readdir(tasks.get()))
    if (entry->d_name[0] != '.') ids.push_back(std::atoi(entry->d_name));
  return ids;
}

long locked_kilobytes() {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> status(std::fopen("/proc/self/status", "r"), std::fclose);
  char line[256];
  long found = -1;
  while (status != nullptr && std::fgets(line, sizeof line, status.get()) != nullptr)
    if (std::sscanf(line, "VmLck: %ld kB", &found) == 1) break;
  return found;
}

// The rounding mode, what traps, what becomes of denormals; not the flags that an operation leaves.
std::uint64_t floating_point_mode() {
#if defined(__x86_64__)
  return _mm_getcsr() & ~0x3fU;
#elif defined(__aarch64__)
  std::uint64_t mode = 0;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
#else
  return 0;
#endif
}

}  // namespace

#if defined(__GLIBC__) && !defined(LRAM_SANITIZED)
constexpr bool kCountsAllocations = true;
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

void* malloc(std::size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* calloc(std::size_t count, std::size_t size) {
  ++allocations;
  return __libc_calloc(count, size);
}
void* realloc(void* memory, std::size_t size) {
  ++allocations;
  return __libc_realloc(memory, size);
}
void* memalign(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
  ++allocations;
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
}
#else
constexpr bool kCountsAllocations = false;
#endif

TEST(no_step_allocates) {
  if (!kCountsAllocations) SKIP("allocations are counted with glibc and without sanitizers");
  const long before = allocations.load();
  int* volatile one = new int(1);
  delete one;
  CHECK(allocations.load() == before + 1);  // the counter counts
  for (const int threads : {1, 3})
    for_each_kind(threads, [](const ModelPointer& model) {
      Loop loop(model, 2);
      FieldArrays arrays(*model->engine, 2);
      const long start = allocations.load();
      CHECK(loop.run());
      CHECK(lram_step_fields(loop.state.get(), arrays.inputs.data(), arrays.inputs.size(), arrays.outputs.data(),
                             arrays.outputs.size()) == LRAM_OK);
      CHECK(allocations.load() == start);
    });
}

TEST(no_step_of_a_loop_allocates) {
  if (!kCountsAllocations) SKIP("allocations are counted with glibc and without sanitizers");
  for (const std::vector<std::uint8_t>& program : loop_programs()) {
    const TemporaryFile file(program);
    Controller controller(file);
    controller.policy.warm_up();
    const long start = allocations.load();
    CHECK(controller.run());
    CHECK(allocations.load() == start);
  }
}

TEST(no_step_of_a_loop_calls_the_kernel) {
  if (kSanitized || emulated()) SKIP("system calls are also the sanitizer's or the emulator's");
  for (const std::vector<std::uint8_t>& program : loop_programs()) {
    const TemporaryFile file(program);
    Controller controller(file);
    CHECK(runs_without_the_kernel([&] { return controller.run(); }));
  }
}

// Page faults while a loop of its own runs for the second time; the first time brings in code and stacks.
long page_faults(const ModelPointer& model) {
  Loop loop(model, 2);
  CHECK(loop.run());
  rusage before = {};
  rusage after = {};
  getrusage(RUSAGE_SELF, &before);
  CHECK(loop.run());
  getrusage(RUSAGE_SELF, &after);
  return (after.ru_minflt - before.ru_minflt) + (after.ru_majflt - before.ru_majflt);
}

// Faults of the engine's own come with every new loop. The kernel's come now and then, where it takes a page of code
// back or moves one elsewhere while memory is short.
TEST(no_step_meets_a_page_fault) {
  if (kSanitized || emulated()) SKIP("page faults are also the sanitizer's or the emulator's");
  for (const int threads : {1, 2})
    for_each_kind(threads, [](const ModelPointer& model) {
      long fewest = page_faults(model);
      for (int again = 0; fewest > 0 && again < 4; ++again) fewest = std::min(fewest, page_faults(model));
      CHECK(fewest == 0);
    });
}

TEST(no_step_calls_the_kernel) {
  if (kSanitized || emulated()) SKIP("system calls are also the sanitizer's or the emulator's");
  for_each_kind(1, [](const ModelPointer& model) {
    Loop loop(model, 2);
    CHECK(runs_without_the_kernel([&] { return loop.run(); }));
  });
}

TEST(idle_threads_sleep) {
  const TemporaryFile file(make_artifact({}));
  for (const int spin : {0, 200, 2000}) {
    setenv("LRAM_ISA", "", 1);
    lram_options options;
    lram_options_init(&options);
    options.threads = 3;
    options.spin_microseconds = spin;
    lram_model* opened = nullptr;
    CHECK_OK(lram_open(file.path().c_str(), &options, &opened));
    const ModelPointer model(opened, lram_close);
    Loop loop(model, 1);
    for (int round = 0; round < 2; ++round) {
      CHECK(loop.run());
      const double before = processor_seconds();
      usleep(200'000);
      CHECK(processor_seconds() - before < 0.05);  // two threads that spin would take 0.2 to 0.4
    }
  }
}

TEST(threads_are_pinned_where_the_options_say) {
  if (kSanitized || emulated()) SKIP("a sanitizer and an emulator have threads of their own");
  const TemporaryFile file(make_artifact({}));
  cpu_set_t allowed;
  CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &allowed)) ++cpu;
  const std::vector<int> before = thread_ids();
  lram_options options;
  lram_options_init(&options);
  options.threads = 3;
  options.cpus = &cpu;
  options.cpu_count = 1;
  lram_model* opened = nullptr;
  CHECK_OK(lram_open(file.path().c_str(), &options, &opened));
  const ModelPointer model(opened, lram_close);
  std::vector<int> workers = thread_ids();
  CHECK(workers.size() == before.size() + 2);
  for (const int worker : workers) {
    if (std::find(before.begin(), before.end(), worker) != before.end()) continue;
    cpu_set_t pinned;
    CHECK(sched_getaffinity(worker, sizeof pinned, &pinned) == 0);
    CHECK(CPU_COUNT(&pinned) == 1 && CPU_ISSET(cpu, &pinned));
  }
  CHECK(Loop(model, 1).run());
}

TEST(memory_is_locked_or_that_is_an_error) {
  if (kSanitized || emulated()) SKIP("sanitizers do not lock memory");
  const TemporaryFile file(make_artifact({}));
  CHECK(chmod(file.path().c_str(), 0644) == 0);
  lram_options options;
  lram_options_init(&options);
  options.lock_memory = 1;
  const pid_t child = fork();
  if (child == 0) {  // without the right to lock anything
    const rlimit nothing = {0, 0};
    lram_model* model = nullptr;
    if (setrlimit(RLIMIT_MEMLOCK, &nothing) != 0 || (getuid() == 0 && setuid(65534) != 0)) _exit(2);
    const bool refused = lram_open(file.path().c_str(), &options, &model) == LRAM_ERROR_MEMORY && model == nullptr;
    _exit(refused && std::strstr(lram_last_error(), "bytes cannot be locked") != nullptr ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);

  lram_model* opened = nullptr;
  if (lram_open(file.path().c_str(), &options, &opened) == LRAM_ERROR_MEMORY) SKIP("this user may not lock memory");
  const ModelPointer model(opened, lram_close);
  const long weights = locked_kilobytes();
  CHECK(weights > 0);
  Loop loop(model, 1);
  CHECK(locked_kilobytes() > weights);
  CHECK(loop.run());
}

TEST(the_callers_floating_point_mode_stays_and_does_not_matter) {
  const TemporaryFile file(make_artifact({}));
  for (const int threads : {1, 2}) {
    const ModelPointer model = open_model(file, "", threads);
    Loop expected(model, 1);
    CHECK(expected.run());
    for (const int rounding : {FE_UPWARD, FE_TOWARDZERO, FE_TONEAREST}) {
      Loop loop(model, 1);
      std::fesetround(rounding);
#if defined(__x86_64__)
      if (rounding == FE_UPWARD) _mm_setcsr(_mm_getcsr() & ~0xe80U);  // traps on all but denormals and inexact results
#endif
      const std::uint64_t before = floating_point_mode();
      CHECK(loop.run());
      CHECK(floating_point_mode() == before);
      CHECK(loop.logits == expected.logits);
      std::fesetenv(FE_DFL_ENV);
    }
  }
}

TEST(denormals_are_zero) {
  const float denormal = std::numeric_limits<float>::denorm_min() * 1000;
  for (const std::string& isa : supported_isas())
    for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
      const TemporaryFile file(make_artifact({}));
      const ModelPointer model = open_model(file, isa.c_str(), 2, format);
      Loop loops[2] = {Loop(model, 1), Loop(model, 1)};
      for (Loop& loop : loops) {
        const float value = &loop == loops ? 0.0F : denormal;
        const std::vector<float> state(loop.about.state_size, value);
        CHECK_OK(lram_state_load(loop.state.get(), state.data(), state.size()));
        loop.observation.assign(loop.about.observation_size, value);
        loop.reward[0] = loop.return_to_go[0] = value;
      }
      for (int step = 0; step < 20; ++step) {
        CHECK(loops[0].step() == LRAM_OK && loops[1].step() == LRAM_OK);
        CHECK(loops[0].logits == loops[1].logits);
        CHECK(std::isfinite(loops[0].logits[0]));
      }
    }
}

TEST(what_is_refused_leaves_every_byte) {
  constexpr int kRows = 2;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinite = std::numeric_limits<float>::infinity();
  for_each_kind(2, [&](const ModelPointer& model) {
    Loop loop(model, kRows);
    CHECK(loop.run());
    const std::vector<std::uint8_t> before = bytes_of(loop.state.get());
    loop.logits.assign(loop.logits.size(), 17);
    loop.action.assign(loop.action.size(), 17);
    const auto refused = [&](std::vector<float>& field, float value, const std::string& text) {
      const float kept = field.back();
      field.back() = value;
      CHECK(loop.step() == LRAM_ERROR_INPUT);
      CHECK(std::string(lram_last_error()).find(text) == 0);
      field.back() = kept;
    };
    for (const float value : {nan, infinite, -infinite}) {
      refused(loop.return_to_go, value, "return_to_go: expected finite values, got ");
      refused(loop.reward, value, "reward: expected finite values, got ");
      refused(loop.is_first, value, "is_first: expected 0 or 1, got ");
      if (loop.about.observation == LRAM_VECTOR)
        refused(loop.observation, value, "observation: expected finite values, got ");
    }
    refused(loop.is_first, 0.5F, "is_first: expected 0 or 1, got 0.5 at element 1");

    std::vector<float> state(kRows * loop.about.state_size);
    CHECK_OK(lram_state_save(loop.state.get(), state.data(), state.size()));
    std::size_t end = 0;
    for (std::size_t i = 0; i < loop.about.state_tensors; ++i) {
      lram_tensor tensor;
      CHECK_OK(lram_state_tensor(model.get(), i, &tensor));
      std::size_t size = kRows;
      for (int axis = 0; axis < tensor.rank; ++axis) size *= tensor.extents[axis];
      end += size;
      const float kept = state[end - 1];
      for (const float value : {nan, infinite}) {
        state[end - 1] = value;
        CHECK(lram_state_load(loop.state.get(), state.data(), state.size()) == LRAM_ERROR_STATE);
        CHECK(std::string(lram_last_error()).find(tensor.name + std::string(": expected finite values, got ")) == 0);
      }
      state[end - 1] = kept;
    }
    CHECK(end == state.size());
    for (const std::size_t count : {std::size_t{0}, state.size() / 2, state.size() - 1})
      CHECK(lram_state_load(loop.state.get(), state.data(), count) == LRAM_ERROR_STATE);
    const int rows[] = {0, kRows};
    CHECK(lram_state_reset(loop.state.get(), rows, 2) == LRAM_ERROR_ARGUMENT);
    CHECK(std::string(lram_last_error()) == "rows: expected 0 to 1, got 2");

    CHECK(bytes_of(loop.state.get()) == before);
    CHECK(loop.logits == std::vector<float>(loop.logits.size(), 17));
    CHECK(loop.action == std::vector<std::int64_t>(loop.action.size(), 17));
    CHECK(loop.step() == LRAM_OK);
  });
}

TEST(a_busy_model_refuses_a_step) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "", 2);
  Loop loop(model, 1);
  CHECK(loop.run());
  const std::vector<std::uint8_t> before = bytes_of(loop.state.get());
  lram::Engine& inner = *model->engine;
  CHECK(inner.begin_step());
  CHECK(loop.step() == LRAM_ERROR_BUSY);
  CHECK(std::string(lram_last_error()).find("model: another thread is inside a step") == 0);
  CHECK(bytes_of(loop.state.get()) == before);
  inner.end_step();
  CHECK(loop.step() == LRAM_OK);
}

int main() { return run_all(); }
