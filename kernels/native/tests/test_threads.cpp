// Threads: the same bits for any number of them, sleeping and waking, models side by side.
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <utility>

#include "state.h"
#include "testing.h"

using namespace lram_testing;

TEST(results_do_not_depend_on_the_number_of_threads) {
  for (const lram::Layout layout :
       {lram::Layout::tiled_float32, lram::Layout::tiled_int8, lram::Layout::tiled_int8g, lram::Layout::tiled_int4})
    for (const bool images : {false, true})
      for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
        Shape shape;
        if (layout == lram::Layout::tiled_int4) shape.inner = 256;  // heads of whole groups
        shape.layout = layout;
        shape.images = images;
        const TemporaryFile file(make_artifact(shape));
        const ModelPointer single = open_model(file, "", 1, format);
        Driver expected(single, 2);
        std::vector<std::vector<float>> logits;
        for (unsigned step = 0; step < 20; ++step) logits.push_back(expected.step(step));
        for (const int threads : {1, 2, 3, 4, 9}) {  // and 1: nor on the run
          const ModelPointer model = open_model(file, "", threads, format);
          Driver actual(model, 2);
          CHECK(actual.about.threads == std::min(threads, shape.inner / 32));
          for (unsigned step = 0; step < 20; ++step) CHECK(actual.step(step) == logits[step]);
          CHECK(actual.save() == expected.save());
        }
      }
}

// Heads and slices are divided among threads where those are more, or do not come out even.
TEST(results_do_not_depend_on_how_heads_are_divided) {
  Shape one_head;
  one_head.heads = one_head.slstm_heads = 1;
  one_head.inner = 320;
  Shape uneven;  // rooms of 112 and 64, more than the heads are wide; blocks of q, k and v across both heads
  uneven.hidden = 120;
  uneven.heads = uneven.slstm_heads = 2;
  uneven.inner = 200;
  uneven.block = 8;
  Shape undivided;  // heads of an sLSTM whose gates share tiles
  undivided.heads = 3;
  undivided.inner = 192;
  undivided.hidden = 96;
  undivided.slstm_heads = 2;
  const auto first_at = [](unsigned step) {
    if (step == 0) return std::vector<int>{0, 1, 2};
    return step == 4 ? std::vector<int>{1} : std::vector<int>{};
  };
  const auto compare = [&](Shape shape, lram::Layout layout, const char* isa, const std::vector<int>& counts) {
    shape.layout = layout;
    shape.blocks = 2;
    const TemporaryFile file(make_artifact(shape));
    const int most = shape.heads * ((shape.inner / shape.heads + 31) / 32);
    for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF}) {
      const unsigned steps = format == LRAM_STATE_FLOAT32 ? 6 : 18;  // more than the period of rewriting
      const ModelPointer single = open_model(file, isa, 1, format);
      const Driver expected(single, 3);
      std::vector<std::vector<float>> logits;
      for (unsigned step = 0; step < steps; ++step) logits.push_back(expected.step(step, first_at(step)));
      for (const int threads : counts) {
        const ModelPointer model = open_model(file, isa, threads, format);
        const Driver actual(model, 3);
        CHECK(actual.about.threads == std::min(threads, most));
        for (unsigned step = 0; step < steps; ++step) CHECK(actual.step(step, first_at(step)) == logits[step]);
        CHECK(actual.save() == expected.save());
        CHECK(bytes_of(actual.state.get()) == bytes_of(expected.state.get()));
      }
    }
  };
  const std::vector<int> counts = {2, 3, 4, 5, 6, 8, 12};
  using lram::Layout;
  for (const Layout layout : {Layout::tiled_float32, Layout::tiled_int8, Layout::tiled_int8g, Layout::tiled_int4})
    compare(one_head, layout, "", counts);
  compare(undivided, Layout::tiled_int8, "", counts);
  compare(uneven, Layout::tiled_int8, "", counts);
  for (const std::string& isa : supported_isas()) compare(uneven, Layout::tiled_int8g, isa.c_str(), {3});
}

// The logits of a row that comes to no number tell every thread's share of it.
TEST(a_row_is_lost_alike_by_any_number_of_threads) {
  Shape shape;
  shape.heads = shape.slstm_heads = 1;
  shape.inner = 192;
  const TemporaryFile file(make_artifact(shape));
  for (const lram_state_format format : {LRAM_STATE_FLOAT32, LRAM_STATE_LAZY_HALF})
    for (const int threads : {1, 2, 6}) {
      const ModelPointer model = open_model(file, "", threads, format);
      const Driver driver(model, 2);
      for (unsigned step = 0; step < 3; ++step) driver.step(step);
      auto& state = static_cast<lram::State&>(*driver.state->episodes);
      const std::size_t width = model->engine->state_fields()[2].size();  // of n
      state.memory_of(0).parts[2][2 * width - 1] = std::nanf("");
      const std::vector<float> observation(2 * driver.about.observation_size, 0.5F);
      const float zeros[2] = {0, 0};
      const float second[2] = {0, 1};
      std::vector<float> action(2 * driver.about.action_size);
      lram_inputs inputs = {observation.data(), zeros, zeros, zeros};
      const lram_outputs outputs = {action.data(), nullptr};
      CHECK(lram_step(driver.state.get(), &inputs, &outputs) == LRAM_ERROR_OVERFLOW);
      CHECK(std::string(lram_last_error()).find("logits: expected finite values, got others in row 1") == 0);
      const float huge[2] = {0, 1e38F};
      inputs.is_first = second;
      inputs.return_to_go = huge;
      CHECK(lram_step(driver.state.get(), &inputs, &outputs) == LRAM_ERROR_OVERFLOW);
      CHECK(std::string(lram_last_error()).find("return_to_go: 1e+38 in row 1 is too large") == 0);
      inputs.return_to_go = zeros;
      CHECK_OK(lram_step(driver.state.get(), &inputs, &outputs));
    }
}

TEST(a_small_step_is_for_one_thread) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer threaded = open_model(file, "", 3);
  Driver expected(threaded, 2);
  CHECK(expected.about.threads == 3);
  const std::size_t before = std::exchange(lram::small_step_bytes, std::size_t{1} << 30);
  {
    const ModelPointer model = open_model(file, "", 3);
    Driver actual(model, 2);
    CHECK(actual.about.threads == 1);
    for (unsigned step = 0; step < 20; ++step) CHECK(actual.step(step) == expected.step(step));
    CHECK(actual.save() == expected.save());
  }
  lram::small_step_bytes = before;
}

TEST(threads_that_sleep_are_woken) {
  const TemporaryFile file(make_artifact({}));
  setenv("LRAM_ISA", "", 1);
  lram_options options;
  lram_options_init(&options);
  options.threads = 3;
  options.spin_microseconds = 0;
  lram_model* opened = nullptr;
  CHECK_OK(lram_open(file.path().c_str(), &options, &opened));
  const ModelPointer model(opened, lram_close);
  Driver driver(model, 1);
  for (unsigned step = 0; step < 30; ++step) {
    driver.step(step);
    std::this_thread::sleep_for(std::chrono::milliseconds(step % 3));
  }
}

TEST(models_run_side_by_side_and_states_share_a_model) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer reference = open_model(file, "");
  Driver expected(reference, 1);
  std::vector<std::vector<float>> logits;
  for (unsigned step = 0; step < 20; ++step) logits.push_back(expected.step(step));
  std::vector<std::thread> loops;
  for (int i = 0; i < 2; ++i)
    loops.emplace_back([&] {
      lram_options options;
      lram_options_init(&options);
      options.threads = 2;
      lram_model* opened = nullptr;
      CHECK_OK(lram_open(file.path().c_str(), &options, &opened));
      const ModelPointer model(opened, lram_close);
      Driver one(model, 1);
      Driver two(model, 1);
      for (unsigned step = 0; step < 20; ++step) {
        CHECK(one.step(step) == logits[step]);
        CHECK(two.step(step) == logits[step]);
      }
    });
  for (std::thread& loop : loops) loop.join();
}

TEST(a_second_step_at_the_same_time_is_refused_or_runs_whole) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "", 2);
  const StatePointer states[2] = {create_state(model, 1), create_state(model, 1)};
  std::vector<float> observation(20, 0.5F);
  std::vector<std::thread> loops;
  for (const StatePointer& state : states)
    loops.emplace_back([&] {
      const float zero = 0;
      float action[3];
      const lram_inputs inputs = {observation.data(), &zero, &zero, &zero};
      const lram_outputs outputs = {action, nullptr};
      for (int done = 0; done < 200;) {
        const lram_status status = lram_step(state.get(), &inputs, &outputs);
        CHECK(status == LRAM_OK || status == LRAM_ERROR_BUSY);
        if (status == LRAM_OK)
          ++done;
        else
          std::this_thread::yield();
      }
    });
  for (std::thread& loop : loops) loop.join();
  std::vector<float> saved[2];
  for (int i = 0; i < 2; ++i) {
    lram_description about;
    CHECK_OK(lram_describe(model.get(), &about));
    saved[i].resize(about.state_size);
    CHECK_OK(lram_state_save(states[i].get(), saved[i].data(), saved[i].size()));
  }
  CHECK(saved[0] == saved[1]);
}

TEST(a_model_is_refused_after_a_fork_and_closed_without_waiting) {
  const TemporaryFile file(make_artifact({}));
  for (const int threads : {1, 3}) {
    const ModelPointer model = open_model(file, "", threads);
    const Driver parent(model, 1);
    parent.step(0);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // now they sleep, with the lock's state in memory
    const std::vector<float> expected = parent.save();
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // a hang ends here
      lram_description about;
      CHECK(lram_describe(model.get(), &about) == LRAM_OK);
      lram_state* other = nullptr;
      std::vector<float> values(about.state_size);
      const float zero = 0;
      std::vector<float> observation(about.observation_size);
      float action[3] = {};
      const lram_inputs inputs = {observation.data(), &zero, &zero, &zero};
      const lram_outputs outputs = {action, nullptr};
      lram_state* const state = parent.state.get();
      const lram_status refused[] = {lram_step(state, &inputs, &outputs),
                                     lram_settle(state),
                                     lram_state_create(model.get(), 1, &other),
                                     lram_state_clone(state, &other),
                                     lram_state_reset(state, nullptr, 0),
                                     lram_state_save(state, values.data(), values.size()),
                                     lram_state_load(state, values.data(), values.size())};
      for (const lram_status status : refused) CHECK(status == LRAM_ERROR_FORKED && other == nullptr);
      CHECK(std::string(lram_last_error()).find("model: it was opened before fork()") == 0);
      const ModelPointer own = open_model(file, "", threads);  // before and after the parent's is given back
      const Driver mine(own, 1);
      mine.step(0);
      CHECK(mine.save() == expected);
      lram_state_free(state);
      lram_close(model.get());
      const ModelPointer again = open_model(file, "", threads);
      const Driver third(again, 1);
      third.step(0);
      mine.step(1);
      const pid_t grandchild = fork();
      if (grandchild == 0) _exit(lram_state_reset(mine.state.get(), nullptr, 0) == LRAM_ERROR_FORKED ? 0 : 1);
      int status = 0;
      CHECK(waitpid(grandchild, &status, 0) == grandchild && status == 0);
      _exit(failures == 0 ? 0 : 1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    parent.step(1);
  }
}

TEST(a_thread_that_cannot_start_is_no_wrong_argument) {
  const TemporaryFile file(make_artifact({}));
  const pid_t child = fork();
  if (child == 0) {
    lram_options options;
    lram_options_init(&options);
    options.threads = 4;
    const rlimit no_more = {0, 0};
    CHECK(chmod(file.path().c_str(), 0644) == 0);
    if (setrlimit(RLIMIT_NPROC, &no_more) != 0 || (getuid() == 0 && setuid(65534) != 0)) _exit(2);
    lram_model* model = nullptr;
    CHECK(lram_open(file.path().c_str(), &options, &model) == LRAM_ERROR_MEMORY && model == nullptr);
    const std::string text = lram_last_error();
    CHECK(text.find("threads: thread 2 of 4 cannot be started: Resource temporarily unavailable") == 0);
    _exit(failures == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main() { return run_all(); }
