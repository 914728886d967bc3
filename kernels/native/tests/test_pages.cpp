// Huge pages: got where they are asked for, of no more memory, of the same results; and none where the system has none.
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "machine.h"
#include "pages.h"
#include "testing.h"

using namespace lram_testing;

namespace {

constexpr lram_huge_pages kAll[] = {LRAM_HUGE_PAGES_NONE, LRAM_HUGE_PAGES_STATE, LRAM_HUGE_PAGES_ALL};

// Of 2 MB each, and given to those that ask. Where memory is in pieces there may be fewer than are asked for.
bool offered() {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> setting(
      std::fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re"), std::fclose);
  char line[64] = "";
  if (setting == nullptr || std::fgets(line, sizeof line, setting.get()) == nullptr) return false;
  return std::strstr(line, "[never]") == nullptr && lram::huge_page_bytes() == std::size_t{1} << 21 &&
         prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 0;
}

#define SKIP_WITHOUT_HUGE_PAGES() \
  if (emulated() || !offered()) SKIP("this system gives no huge pages of 2 MB to those that ask")

// A state and weights of some huge pages each.
Shape large() {
  Shape shape;
  shape.blocks = shape.heads = 1;
  shape.hidden = 256;
  shape.inner = 1024;
  shape.slstm_at = {};
  return shape;
}

ModelPointer open_with(const TemporaryFile& file, lram_huge_pages huge_pages, bool lock = false) {
  setenv("LRAM_ISA", "", 1);
  lram_options options;
  lram_options_init(&options);
  options.threads = 2;
  options.huge_pages = huge_pages;
  options.lock_memory = lock ? 1 : 0;
  lram_model* model = nullptr;
  if (lram_open(file.path().c_str(), &options, &model) != LRAM_OK) CHECK(lock);
  return {model, lram_close};
}

lram_memory weights_of(const ModelPointer& model) {
  lram_memory found = {};
  CHECK_OK(lram_model_memory(model.get(), &found));
  return found;
}

lram_memory state_of(const StatePointer& state) {
  lram_memory found = {};
  CHECK_OK(lram_state_memory(state.get(), &found));
  return found;
}

std::size_t resident_bytes() {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen("/proc/self/statm", "re"), std::fclose);
  unsigned long pages = 0;
  CHECK(std::fscanf(file.get(), "%*u %lu", &pages) == 1);
  return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

std::vector<float> logits_after(const ModelPointer& model, unsigned steps) {
  Driver driver(model, 1);
  std::vector<float> logits;
  for (unsigned step = 0; step < steps; ++step) logits = driver.step(step);
  return logits;
}

}  // namespace

TEST(whole_huge_pages_are_aligned_and_the_rest_is_small) {
  SKIP_WITHOUT_HUGE_PAGES();
  const std::size_t huge = lram::huge_page_bytes();
  for (const std::size_t bytes : {huge, 3 * huge, 3 * huge + huge / 2 + 5}) {
    const std::size_t before = resident_bytes();
    const lram::Pages pages("test", bytes, true);
    const std::size_t grew = resident_bytes() - before;
    CHECK(pages.bytes() == bytes && reinterpret_cast<std::uintptr_t>(pages.begin()) % huge == 0);
    const std::size_t got = lram::bytes_in_huge_pages(pages.begin(), bytes);
    CHECK(got > 0 && got % huge == 0 && got <= bytes);
    if (!kSanitized) CHECK(grew >= bytes && grew < bytes + huge / 4);  // populated, and no more than that
    CHECK(std::count(pages.begin(), pages.begin() + bytes, 0) == static_cast<std::ptrdiff_t>(bytes));
    std::memset(pages.begin(), 1, bytes);
    CHECK(lram::bytes_in_huge_pages(pages.begin(), bytes) == got);
  }
}

TEST(what_is_smaller_than_a_huge_page_takes_none) {
  const std::size_t bytes = lram::huge_page_bytes() == 0 ? 4096 : lram::huge_page_bytes() - 1;
  const lram::Pages pages("test", bytes, true);
  CHECK(lram::bytes_in_huge_pages(pages.begin(), bytes) == 0);
}

TEST(small_states_stay_small) {
  const TemporaryFile file(make_artifact({}));
  std::size_t grew[2] = {};
  for (const int huge : {0, 1}) {
    const ModelPointer model = open_with(file, kAll[huge]);
    const std::size_t before = resident_bytes();
    std::vector<StatePointer> fleet;
    for (int i = 0; i < 64; ++i) fleet.push_back(create_state(model, 1));
    grew[huge] = resident_bytes() - before;
    const lram_memory memory = state_of(fleet[0]);
    CHECK(memory.bytes > 0 && memory.bytes < 1U << 20 && memory.huge_bytes == 0);
    if (!kSanitized && !emulated()) CHECK(grew[huge] < 64 * (memory.bytes + 16384));
  }
}

TEST(states_and_weights_lie_where_the_options_say) {
  SKIP_WITHOUT_HUGE_PAGES();
  const TemporaryFile file(make_artifact(large()));
  for (const lram_huge_pages asked : kAll) {
    const ModelPointer model = open_with(file, asked);
    const StatePointer state = create_state(model, 1);
    CHECK((state_of(state).huge_bytes > 0) == (asked != LRAM_HUGE_PAGES_NONE));
    CHECK(state_of(state).bytes > 2 * lram::huge_page_bytes());
    CHECK(weights_of(model).huge_bytes > 0 || asked != LRAM_HUGE_PAGES_ALL);
    lram_state* copied = nullptr;
    CHECK_OK(lram_state_clone(state.get(), &copied));
    const StatePointer clone(copied, lram_state_free);
    CHECK((state_of(clone).huge_bytes > 0) == (asked != LRAM_HUGE_PAGES_NONE));
  }
}

TEST(they_change_no_bit) {
  const TemporaryFile file(make_artifact(large()));
  const std::vector<float> expected = logits_after(open_with(file, LRAM_HUGE_PAGES_NONE), 5);
  for (const lram_huge_pages asked : kAll) CHECK(logits_after(open_with(file, asked), 5) == expected);
}

TEST(a_damaged_artifact_is_found_in_a_copy_too) {
  std::vector<std::uint8_t> bytes = make_artifact(large());
  bytes[bytes.size() / 2] ^= 0x10;
  const TemporaryFile file(bytes);
  lram_options options;
  lram_options_init(&options);
  options.huge_pages = LRAM_HUGE_PAGES_ALL;
  lram_model* model = nullptr;
  CHECK(lram_open(file.path().c_str(), &options, &model) == LRAM_ERROR_ARTIFACT && model == nullptr);
  CHECK(std::strstr(lram_last_error(), "checksum: the file was altered") != nullptr);
}

// The child is a process to which the system gives none, whatever its setting is.
TEST(without_huge_pages_everything_works_in_small_ones) {
  const TemporaryFile file(make_artifact(large()));
  const ModelPointer model = open_with(file, LRAM_HUGE_PAGES_ALL);
  Driver parent(model, 1);
  const std::vector<float> expected = logits_after(model, 5);
  const pid_t child = fork();
  if (child == 0) {
    if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0) _exit(2);
    const ModelPointer own = open_with(file, LRAM_HUGE_PAGES_ALL);
    CHECK(weights_of(own).huge_bytes == 0);
    CHECK(state_of(create_state(own, 1)).huge_bytes == 0);
    CHECK(logits_after(own, 5) == expected);
    lram_state_free(parent.state.release());  // what the parent asked for is given back here, too
    _exit(failures == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  std::vector<float> logits;
  for (unsigned step = 0; step < 5; ++step) logits = parent.step(step);
  CHECK(logits == expected);
}

TEST(too_little_address_space_for_a_copy_leaves_the_weights_mapped) {
  if (kSanitized || emulated()) SKIP("sanitizers and emulators need address space of their own");
  SKIP_WITHOUT_HUGE_PAGES();
  const TemporaryFile file(make_artifact(large()));
  const std::size_t size = weights_of(open_with(file, LRAM_HUGE_PAGES_NONE)).bytes;
  const pid_t child = fork();
  if (child == 0) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> statm(std::fopen("/proc/self/statm", "re"), std::fclose);
    unsigned long pages = 0;
    if (std::fscanf(statm.get(), "%lu", &pages) != 1) _exit(2);
    // room for the file and a thread's stack, not for a huge page more
    rlimit most = {};
    most.rlim_cur = most.rlim_max = pages * 4096 + size + (std::size_t{1} << 20);
    if (setrlimit(RLIMIT_AS, &most) != 0) _exit(2);
    lram_options options;
    lram_options_init(&options);
    options.huge_pages = LRAM_HUGE_PAGES_ALL;
    lram_model* model = nullptr;
    CHECK_OK(lram_open(file.path().c_str(), &options, &model));
    lram_memory memory = {};
    CHECK_OK(lram_model_memory(model, &memory));
    CHECK(memory.bytes == size);
    _exit(failures == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(they_are_locked_like_others) {
  if (kSanitized || emulated()) SKIP("sanitizers do not lock memory");
  const TemporaryFile file(make_artifact(large()));
  const ModelPointer model = open_with(file, LRAM_HUGE_PAGES_ALL, true);
  lram_state* created = nullptr;
  if (model == nullptr || lram_state_create(model.get(), 1, &created) != LRAM_OK) {
    CHECK(std::strstr(lram_last_error(), "cannot be locked") != nullptr);
    SKIP("this user may not lock so much memory");
  }
  const StatePointer state(created, lram_state_free);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> status(std::fopen("/proc/self/status", "re"), std::fclose);
  char line[256];
  std::size_t locked = 0;
  while (std::fgets(line, sizeof line, status.get()) != nullptr)
    if (std::sscanf(line, "VmLck: %zu kB", &locked) == 1) break;
  CHECK(1024 * locked >= weights_of(model).bytes + state_of(state).bytes);
}

TEST(an_option_that_is_none_is_refused) {
  const TemporaryFile file(make_artifact({}));
  lram_options options;
  lram_options_init(&options);
  CHECK(options.huge_pages == LRAM_HUGE_PAGES_STATE);
  lram_model* model = nullptr;
  const int beyond = 3;  // as a program in C may say
  std::memcpy(&options.huge_pages, &beyond, sizeof options.huge_pages);
  CHECK(lram_open(file.path().c_str(), &options, &model) == LRAM_ERROR_ARGUMENT && model == nullptr);
  CHECK(std::string(lram_last_error()) == "huge_pages: expected 0 to 2, got 3");
}

int main() { return run_all(); }
