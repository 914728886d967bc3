// What a step leaves for the time after its action: done once, whoever does it, and no result depends on when.
#include <atomic>
#include <random>
#include <thread>

#include "testing.h"
#include "thread_pool.h"

using namespace lram_testing;

namespace {

constexpr unsigned kSteps = 40;  // more than twice the period in which lazy states are rewritten

std::vector<int> first_at(unsigned step) {
  if (step == 0) return {0, 1};
  return step == 21 ? std::vector<int>{1} : std::vector<int>{};
}

}  // namespace

TEST(no_result_depends_on_when_a_step_is_settled) {
  const TemporaryFile file(make_artifact({}));
  for (const int threads : {1, 2, 3}) {
    const ModelPointer model = open_model(file, "", threads, LRAM_STATE_LAZY_HALF);
    const Driver never(model, 2);
    const Driver always(model, 2);
    Driver sometimes(model, 2);
    std::mt19937 random(7);
    for (unsigned step = 0; step < kSteps; ++step) {
      const std::vector<float> expected = always.step(step, first_at(step));
      CHECK_OK(lram_settle(always.state.get()));
      CHECK_OK(lram_settle(always.state.get()));  // nothing is left
      CHECK(never.step(step, first_at(step)) == expected);
      CHECK(sometimes.step(step, first_at(step)) == expected);
      if (random() % 3 == 0) CHECK_OK(lram_settle(sometimes.state.get()));
      if (random() % 3 == 0) CHECK(sometimes.save() == always.save());
      if (random() % 3 == 0) {
        lram_state* copy = nullptr;
        CHECK_OK(lram_state_clone(sometimes.state.get(), &copy));
        sometimes.state.reset(copy);
      }
    }
    CHECK(never.save() == always.save());
    CHECK(sometimes.save() == always.save());
    CHECK(bytes_of(never.state.get()) == bytes_of(always.state.get()));
  }
}

// Heads so wide that several of their tiles are rewritten after one step are left in pieces.
TEST(no_result_depends_on_who_settles_which_tile) {
  Shape shape;
  shape.heads = 1;
  shape.inner = 288;
  const TemporaryFile file(make_artifact(shape));
  for (const std::string& isa : supported_isas()) {
    const ModelPointer single = open_model(file, isa.c_str(), 1, LRAM_STATE_LAZY_HALF);
    const ModelPointer threaded = open_model(file, isa.c_str(), 3, LRAM_STATE_LAZY_HALF);
    const Driver expected(single, 2);
    const Driver settled(single, 2);
    const Driver actual(threaded, 2);
    for (unsigned step = 0; step < kSteps; ++step) {
      const std::vector<float> logits = expected.step(step, first_at(step));
      CHECK(settled.step(step, first_at(step)) == logits);
      CHECK_OK(lram_settle(settled.state.get()));
      CHECK(actual.step(step, first_at(step)) == logits);
      if (step % 7 == 3) CHECK(actual.save() == expected.save());
    }
    CHECK(bytes_of(settled.state.get()) == bytes_of(expected.state.get()));
    CHECK(bytes_of(actual.state.get()) == bytes_of(expected.state.get()));
  }
}

TEST(a_row_that_is_reset_or_loaded_while_a_step_is_not_settled_is_whole) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "", 2, LRAM_STATE_LAZY_HALF);
  const Driver fresh(model, 1);
  const Driver used(model, 1);
  for (unsigned step = 0; step < 20; ++step) used.step(step);
  const std::vector<float> saved = used.save();
  for (unsigned step = 0; step < 20; ++step) used.step(step);
  CHECK_OK(lram_state_load(used.state.get(), saved.data(), saved.size()));
  CHECK_OK(lram_state_load(fresh.state.get(), saved.data(), saved.size()));
  for (unsigned step = 20; step < 40; ++step) CHECK(used.step(step) == fresh.step(step));
  for (const Driver* driver : {&used, &fresh}) CHECK_OK(lram_state_reset(driver->state.get(), nullptr, 0));
  const Driver another(model, 1);
  for (unsigned step = 0; step < 20; ++step) CHECK(used.step(step) == another.step(step));
}

TEST(states_are_settled_and_saved_while_others_of_their_model_step) {
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "", 2, LRAM_STATE_LAZY_HALF);
  const ModelPointer alone = open_model(file, "", 1, LRAM_STATE_LAZY_HALF);
  const Driver expected(alone, 1);
  std::vector<std::vector<float>> saved;
  for (unsigned step = 0; step < kSteps; ++step) {
    expected.step(step);
    saved.push_back(expected.save());
  }
  std::vector<std::thread> loops;
  for (int loop = 0; loop < 3; ++loop)
    loops.emplace_back([&, loop] {
      const StatePointer state = create_state(model, 1);
      lram_description about;
      CHECK_OK(lram_describe(model.get(), &about));
      std::vector<float> values(about.state_size);
      for (unsigned step = 0; step < kSteps;) {
        std::mt19937 random(step * 1000);  // what Driver gives a step
        std::normal_distribution<float> normal;
        std::vector<float> observation(about.observation_size);
        for (float& value : observation) {
          value = normal(random);
          random();
        }
        const float return_to_go = normal(random);
        const float reward = normal(random);
        const float zero = 0;
        float action[3];
        const lram_inputs inputs = {observation.data(), &return_to_go, &reward, &zero};
        const lram_outputs outputs = {action, nullptr};
        const lram_status status = lram_step(state.get(), &inputs, &outputs);
        CHECK(status == LRAM_OK || status == LRAM_ERROR_BUSY);
        if (status != LRAM_OK) {
          std::this_thread::yield();
          continue;
        }
        if (loop > 0) CHECK_OK(lram_settle(state.get()));
        if (loop > 1) {
          CHECK_OK(lram_state_save(state.get(), values.data(), values.size()));
          CHECK(values == saved[step]);
        }
        ++step;
      }
      CHECK_OK(lram_state_save(state.get(), values.data(), values.size()));
      CHECK(values == saved.back());
    });
  for (std::thread& loop : loops) loop.join();
}

TEST(a_piece_that_is_left_over_is_done_once_however_many_finish_it) {
  constexpr int kPieces = 200;
  struct Work {
    lram::ThreadPool pool{3, {}, 50};
    std::atomic<int> done[kPieces] = {};
  } work;
  const auto leave = [](void* context, int thread) {
    const auto piece = [](void* of, int number) { static_cast<Work*>(of)->done[number].fetch_add(1); };
    if (thread == 0) static_cast<Work*>(context)->pool.leave(piece, context, kPieces);
  };
  for (int round = 1; round <= 50; ++round) {
    work.pool.run(leave, &work);
    std::vector<std::thread> others;
    for (int i = 0; i < 2; ++i)
      others.emplace_back([&] {
        work.pool.finish(&work);
        for (const std::atomic<int>& times : work.done) CHECK(times == round);
      });
    work.pool.finish_all();
    for (const std::atomic<int>& times : work.done) CHECK(times == round);
    for (std::thread& other : others) other.join();
    work.pool.finish(nullptr);  // of a context that left nothing
  }
}

TEST(nothing_to_settle_is_an_error_only_without_a_state) {
  CHECK(lram_settle(nullptr) == LRAM_ERROR_ARGUMENT);
  CHECK(std::string(lram_last_error()) == "state: expected one, got NULL");
  const TemporaryFile file(make_artifact({}));
  const ModelPointer model = open_model(file, "");
  const Driver driver(model, 1);
  CHECK_OK(lram_settle(driver.state.get()));
  driver.step(0);
  CHECK_OK(lram_settle(driver.state.get()));
}

int main() { return run_all(); }
