// The safety envelope: what actions are held to, what stops a row, what is counted, and what knows nothing of it.
#include <algorithm>
#include <cstring>

#include "interface_writer.h"
#include "program_writer.h"
#include "testing.h"

using namespace lram_testing;

namespace {

constexpr std::size_t kSize = 2;  // elements of the action of `limited_program`
enum Output { kAction, kSum, kUnclamped };

const std::vector<lram::ElementFacts>& slow() {
  static const std::vector<lram::ElementFacts> facts = {element("hip", "N*m", -1, 1, 0.5F, 0.25F),
                                                        element("knee", "N*m", -1, 1, 0.125F, -0.75F)};
  return facts;
}
std::vector<std::uint8_t> held(std::uint32_t most_clamps) {
  return interface_of(50, {{"action", true, slow(), most_clamps}});
}
// Stops, but at once.
std::vector<std::uint8_t> stopping(std::uint32_t most_clamps) {
  return interface_of(50, {{"action", true, {element("", "", -1, 1, HUGE_VALF, 0.25F)}, most_clamps}});
}

ModelPointer open_with(const TemporaryFile& file, int safety) {
  setenv("LRAM_ISA", "", 1);
  lram_options options;
  lram_options_init(&options);
  CHECK(options.safety == 1);
  options.safety = safety;
  lram_model* model = nullptr;
  CHECK_OK(lram_open(file.path().c_str(), &options, &model));
  return {model, lram_close};
}

struct Account {
  lram_account row;
  std::vector<std::uint64_t> clamped;
  std::vector<std::uint64_t> slowed;
};

Account account_of(const StatePointer& state, int row, std::size_t output = kAction) {
  Account found = {{}, std::vector<std::uint64_t>(kSize, 77), std::vector<std::uint64_t>(kSize, 77)};
  CHECK_OK(lram_state_account(state.get(), output, row, &found.row, found.clamped.data(), found.slowed.data()));
  return found;
}

// Robots under a limited program.
struct Robots {
  Robots(const std::vector<std::uint8_t>& program, int rows, int safety = 1)
      : file(program),
        model(open_with(file, safety)),
        state(create_state(model, rows)),
        count(static_cast<std::size_t>(rows)),
        observation(count * kSize),
        first(count),
        action(count * kSize),
        sum(count * kSize),
        unclamped(count * kSize) {}

  lram_status step(const StatePointer& of) {
    const void* const inputs[] = {observation.data(), first.data()};
    void* const outputs[] = {action.data(), sum.data(), unclamped.data()};
    return lram_step_fields(of.get(), inputs, 2, outputs, 3);
  }
  // The action of a single robot.
  std::vector<float> operator()(float hip, float knee, float is_first = 0) {
    observation = {hip, knee};
    first = {is_first};
    CHECK_OK(step(state));
    return action;
  }
  std::vector<float> saved() const {
    std::vector<float> values(count * kSize);
    CHECK_OK(lram_state_save(state.get(), values.data(), values.size()));
    return values;
  }

  TemporaryFile file;
  ModelPointer model;
  StatePointer state;
  std::size_t count;
  std::vector<float> observation;
  std::vector<float> first;
  std::vector<float> action;
  std::vector<float> sum;
  std::vector<float> unclamped;
};

using Values = std::vector<float>;

}  // namespace

TEST(an_action_changes_by_no_more_than_is_said) {
  Robots robot(limited_program(held(0)), 1);
  CHECK((robot(0.75F, -0.5F, 1) == Values{0.75F, -0.5F}));  // the first: nothing is known of before
  CHECK((robot(-0.75F, -0.5F) == Values{0.25F, -0.5F}));
  CHECK((robot(-0.75F, 0.5F) == Values{-0.25F, -0.375F}));
  CHECK((robot(-0.75F, -0.375F) == Values{-0.75F, -0.375F}));
  CHECK((robot(5, -0.375F) == Values{-0.25F, -0.375F}));  // clamped, and then held
  const Account found = account_of(robot.state, 0);
  CHECK((found.slowed == std::vector<std::uint64_t>{3, 1}) && (found.clamped == std::vector<std::uint64_t>{1, 0}));
  CHECK(found.row.consecutive == 1 && found.row.stopped == 0 && found.row.is_stopped == 0);
}

TEST(a_row_that_is_clamped_too_often_stops_until_its_episode_ends) {
  for (const bool reads_first : {true, false}) {
    Robots robot(limited_program(stopping(2), reads_first), 1);
    CHECK((robot(2, 0, 1) == Values{1, 0}) && (robot(0, -2) == Values{0, -1}));  // any element counts
    CHECK((robot(0.5F, 0.5F) == Values{0.5F, 0.5F}));                            // not in a row
    CHECK((robot(2, 0) == Values{1, 0}) && (robot(2, 0) == Values{1, 0}));
    CHECK(account_of(robot.state, 0).row.consecutive == 2);
    CHECK((robot(2, 0) == Values{0.25F, 0.25F}));
    CHECK((robot(0.5F, 0.5F) == Values{0.25F, 0.25F}));  // for good
    Account found = account_of(robot.state, 0);
    CHECK(found.row.stopped == 2 && found.row.is_stopped == 1 && found.row.consecutive == 0);
    CHECK((found.clamped == std::vector<std::uint64_t>{4, 1}) && (found.slowed == std::vector<std::uint64_t>{0, 0}));

    CHECK((robot(2, 0, 1) == Values{1, 0}));  // by is_first, also where the policy does not read it
    CHECK(account_of(robot.state, 0).row.is_stopped == 0);
    robot(2, 0);
    CHECK((robot(2, 0) == Values{0.25F, 0.25F}));
    CHECK_OK(lram_state_reset(robot.state.get(), nullptr, 0));
    CHECK((robot(2, 0) == Values{1, 0}) && account_of(robot.state, 0).row.consecutive == 1);
    robot(2, 0);
    CHECK((robot(2, 0) == Values{0.25F, 0.25F}));
    const int row = 0;
    CHECK_OK(lram_state_reset(robot.state.get(), &row, 1));
    CHECK((robot(2, 0) == Values{1, 0}));
    robot(2, 0);
    CHECK((robot(2, 0) == Values{0.25F, 0.25F}));
    const Values values = robot.saved();
    CHECK_OK(lram_state_load(robot.state.get(), values.data(), values.size()));
    CHECK((robot(2, 0) == Values{1, 0}));
    found = account_of(robot.state, 0);  // of all episodes
    CHECK(found.row.stopped == 5 && found.clamped[0] == 14 && found.clamped[1] == 1);
  }
}

TEST(a_row_that_stops_does_so_no_faster_than_it_may_move) {
  Robots robot(limited_program(held(1)), 1);
  robot(1.5F, 1, 1);
  CHECK((robot(1.5F, 1) == Values{0.5F, 0.875F}));
  CHECK((robot(1.5F, 1) == Values{0.25F, 0.75F}));
  CHECK((robot(-1, -1) == Values{0.25F, 0.625F}));
  const Account found = account_of(robot.state, 0);
  CHECK(found.row.stopped == 3 && (found.slowed == std::vector<std::uint64_t>{1, 3}));
}

TEST(what_the_robot_holds_is_where_it_begins) {
  Robots robot(limited_program(held(0)), 1);
  const float zeros[kSize] = {0, 0};
  const float ones[kSize] = {1, 1};
  CHECK_OK(lram_state_hold(robot.state.get(), kAction, zeros));
  CHECK((robot(1, 1, 1) == Values{0.5F, 0.125F}));  // it survives the start of the episode that it was told for,
  CHECK((robot(1, 1, 1) == Values{1, 1}));          // and no other
  CHECK_OK(lram_state_hold(robot.state.get(), kAction, zeros));  // in the middle of one
  CHECK((robot(1, 1) == Values{0.5F, 0.125F}));
  CHECK_OK(lram_state_hold(robot.state.get(), kAction, zeros));
  CHECK_OK(lram_state_hold(robot.state.get(), kAction, ones));
  CHECK((robot(0, 0, 1) == Values{0.5F, 0.875F}));
  CHECK_OK(lram_state_hold(robot.state.get(), kAction, zeros));
  CHECK_OK(lram_state_reset(robot.state.get(), nullptr, 0));
  CHECK((robot(1, 1) == Values{1, 1}));
  CHECK_OK(lram_state_hold(robot.state.get(), kAction, zeros));
  const Values values = robot.saved();
  CHECK_OK(lram_state_load(robot.state.get(), values.data(), values.size()));
  CHECK((robot(-1, -1) == Values{-1, -1}));
  CHECK_OK(lram_state_hold(robot.state.get(), kSum, ones));  // of which nothing is said
  CHECK((robot(0, -1) == Values{-0.5F, -1}));

  CHECK(lram_state_hold(robot.state.get(), 3, zeros) == LRAM_ERROR_ARGUMENT);
  CHECK(lram_last_error() == std::string("index: expected less than 3, got 3"));
  CHECK(lram_state_hold(robot.state.get(), kAction, nullptr) == LRAM_ERROR_ARGUMENT);
  CHECK(lram_state_hold(nullptr, kAction, zeros) == LRAM_ERROR_ARGUMENT);
  const float odd[kSize] = {1, NAN};
  CHECK(lram_state_hold(robot.state.get(), kAction, odd) == LRAM_ERROR_INPUT);
  CHECK(lram_last_error() == std::string("action: expected finite values, got nan at element 1"));
  CHECK((robot(-1, -1) == Values{-1, -1}));  // nothing has changed
  const TemporaryFile file(small_program(lram::Layout::tiled_int8));
  const ModelPointer model = open_model(file, "");
  CHECK(lram_state_hold(create_state(model, 1).get(), 1, ones) == LRAM_ERROR_ARGUMENT);
  CHECK(lram_last_error() == std::string("output: expected one of floats, got choice"));
}

TEST(a_step_that_fails_changes_nothing_of_it) {
  for (const std::uint32_t most_clamps : {0U, 1U}) {
    Robots robot(limited_program(held(most_clamps)), 1);
    Robots other(limited_program(held(most_clamps)), 1);
    for (Robots* one : {&robot, &other}) (*one)(2, 0.5F, 1);
    for (const float spoilt : {NAN, 3e38F}) {
      robot.observation = {spoilt, 1};
      robot.first = {1};
      const lram_status status = robot.step(robot.state);
      if (spoilt == 3e38F) {  // it overflows with the sum of another
        CHECK(status == LRAM_OK);
        robot.first = {0};
        CHECK(robot.step(robot.state) == LRAM_ERROR_OVERFLOW);
        other.observation = {3e38F, 1};
        other.first = {1};
        CHECK_OK(other.step(other.state));
      } else {
        CHECK(status == LRAM_ERROR_INPUT);
      }
      CHECK((robot.action == other.action));
      const Account one = account_of(robot.state, 0);
      const Account two = account_of(other.state, 0);
      CHECK(one.clamped == two.clamped && one.slowed == two.slowed && one.row.consecutive == two.row.consecutive &&
            one.row.stopped == two.row.stopped);
    }
    CHECK_OK(lram_state_reset(robot.state.get(), nullptr, 0));
    CHECK_OK(lram_state_reset(other.state.get(), nullptr, 0));
    const float zeros[kSize] = {0, 0};
    CHECK_OK(lram_state_hold(robot.state.get(), kAction, zeros));
    CHECK_OK(lram_state_hold(other.state.get(), kAction, zeros));
    robot.observation = {NAN, 1};
    CHECK(robot.step(robot.state) == LRAM_ERROR_INPUT);
    CHECK(robot(1, 1, 1) == other(1, 1, 1) && (robot.action == Values{0.5F, 0.125F}));  // what was told is still known
  }
}

TEST(the_policy_knows_nothing_of_it) {
  Robots held_robot(limited_program(held(2)), 1);
  Robots free_robot(limited_program(held(2)), 1, 0);
  Robots plain(limited_program({}), 1);
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 1.2F);
  for (int step = 0; step < 200; ++step) {
    const float hip = normal(random);
    const float knee = normal(random);
    const float first = step % 50 == 0 ? 1.0F : 0.0F;
    for (Robots* robot : {&held_robot, &free_robot, &plain}) (*robot)(hip, knee, first);
    CHECK(held_robot.sum == plain.sum && held_robot.unclamped == plain.unclamped);
    CHECK(held_robot.saved() == plain.saved() && bytes_of(held_robot.state.get()) == bytes_of(plain.state.get()));
    CHECK(free_robot.action == plain.action);
    CHECK((plain.action == Values{std::min(std::max(hip, -1.0F), 1.0F), std::min(std::max(knee, -1.0F), 1.0F)}));
  }
  // without an envelope clamps are counted all the same
  const Account one = account_of(held_robot.state, 0);
  CHECK(one.row.stopped > 0 && one.slowed[0] > 0 && one.clamped[0] > 20 && one.clamped[1] > 20);
  for (Robots* robot : {&free_robot, &plain}) {
    const Account two = account_of(robot->state, 0);
    CHECK(two.clamped == one.clamped && two.row.consecutive == one.row.consecutive);
    CHECK(two.row.stopped == 0 && two.row.is_stopped == 0 && (two.slowed == std::vector<std::uint64_t>{0, 0}));
  }
}

namespace {

// What is done to one row, as it is said: written anew, for the test.
struct Expected {
  std::uint32_t most_clamps;
  bool stopped = false;
  bool known = false;
  float before[kSize] = {};
  std::uint64_t consecutive = 0;
  std::uint64_t stops = 0;
  std::uint64_t clamped[kSize] = {};
  std::uint64_t slowed[kSize] = {};

  void start() { stopped = known = false, consecutive = 0; }

  void step(const float* observed, float* given) {
    bool any = false;
    for (std::size_t i = 0; i < kSize; ++i) {
      given[i] = std::min(std::max(observed[i], -1.0F), 1.0F);
      if (given[i] != observed[i]) ++clamped[i], any = true;
    }
    consecutive = any ? consecutive + 1 : 0;
    stopped = stopped || (most_clamps > 0 && consecutive > most_clamps);
    if (stopped) ++stops;
    for (std::size_t i = 0; i < kSize; ++i) {
      const float wanted = stopped ? slow()[i].safe : given[i];
      const float low = before[i] - slow()[i].most_change;
      const float high = before[i] + slow()[i].most_change;
      given[i] = !known ? wanted : wanted < low ? low : wanted > high ? high : wanted;
      if (given[i] != wanted) ++slowed[i];
      before[i] = given[i];
    }
    known = true;
  }
};

}  // namespace

TEST(rows_know_nothing_of_one_another) {
  constexpr int kRows = 5;
  for (const std::uint32_t most_clamps : {0U, 3U}) {
    Robots robots(limited_program(held(most_clamps)), kRows);
    std::vector<Expected> expected(kRows, Expected{most_clamps});
    std::mt19937 random(most_clamps);
    std::normal_distribution<float> normal(0, 0.8F);
    const auto chance = [&](unsigned one_in) { return random() % one_in == 0; };
    StatePointer state = create_state(robots.model, kRows);
    for (int step = 0; step < 3000; ++step) {
      for (float& value : robots.observation) value = normal(random);
      for (std::size_t row = 0; row < kRows; ++row) {
        robots.first[row] = chance(40) ? 1.0F : 0.0F;
        if (row == 3) robots.observation[2 * row] = 2;  // always beyond its limit
      }
      if (chance(60)) {  // a row is reset
        const int row = static_cast<int>(random() % kRows);
        CHECK_OK(lram_state_reset(state.get(), &row, 1));
        expected[static_cast<std::size_t>(row)].start();
      }
      if (chance(60)) {  // a copy goes on in its place
        lram_state* copy = nullptr;
        CHECK_OK(lram_state_clone(state.get(), &copy));
        for (int some = 0; some < 3; ++some) CHECK_OK(robots.step(state));  // which is no matter to it
        state = StatePointer(copy, lram_state_free);
      }
      if (chance(50)) {  // a sensor fails
        const float before = robots.observation[7];
        robots.observation[7] = NAN;
        CHECK(robots.step(state) == LRAM_ERROR_INPUT);
        robots.observation[7] = before;
      }
      bool told = false;
      if (chance(50)) {
        std::vector<float> values(kRows * kSize);
        for (float& value : values) value = normal(random) / 2;
        CHECK_OK(lram_state_hold(state.get(), kAction, values.data()));
        for (std::size_t row = 0; row < kRows; ++row) std::copy_n(&values[row * kSize], kSize, expected[row].before);
        told = true;
      }
      CHECK_OK(robots.step(state));
      for (std::size_t row = 0; row < kRows; ++row) {
        float given[kSize];
        if (robots.first[row] != 0) expected[row].start();
        expected[row].known = expected[row].known || told;
        expected[row].step(&robots.observation[row * kSize], given);
        CHECK(std::equal(given, given + kSize, &robots.action[row * kSize]));
        CHECK((robots.action[2 * row] <= 1 && robots.action[2 * row + 1] >= -1) || told || most_clamps > 0);
      }
    }
    for (std::size_t row = 0; row < kRows; ++row) {
      const Expected& of = expected[row];
      const Account found = account_of(state, static_cast<int>(row));
      CHECK(found.row.consecutive == of.consecutive && found.row.stopped == of.stops);
      CHECK((found.row.is_stopped != 0) == of.stopped && (most_clamps == 0 || of.stops > 0));
      CHECK(std::equal(of.clamped, of.clamped + kSize, found.clamped.begin()) && of.clamped[1] > 0);
      CHECK(std::equal(of.slowed, of.slowed + kSize, found.slowed.begin()) && of.slowed[0] > 0);
    }
  }
}

TEST(an_output_that_is_not_wanted_is_held_all_the_same) {
  Robots seen(limited_program(held(2)), 1);
  Robots unseen(limited_program(held(2)), 1);
  void* const none[3] = {};
  for (const float hip : {0.5F, -2.0F, -2.0F, -2.0F, 0.0F}) {
    seen(hip, 1);
    const void* const inputs[] = {seen.observation.data(), seen.first.data()};
    CHECK_OK(lram_step_fields(unseen.state.get(), inputs, 2, none, 3));
  }
  const Account one = account_of(seen.state, 0);
  const Account two = account_of(unseen.state, 0);
  CHECK(one.clamped == two.clamped && one.slowed == two.slowed && one.row.stopped == two.row.stopped);
  CHECK(one.row.stopped == 2 && one.clamped[0] == 3 && one.slowed[0] > 0);
  CHECK(seen(0.5F, 1) == unseen(0.5F, 1));
}

TEST(an_episode_starts_where_the_policy_does_not_read_it_only_if_it_is_told) {
  Robots robot(limited_program(held(0), false), 1);
  robot(0, 0, 1);
  const void* const inputs[] = {robot.observation.data(), nullptr};
  void* const outputs[] = {robot.action.data(), nullptr, nullptr};
  robot.observation = {1, 1};
  CHECK_OK(lram_step_fields(robot.state.get(), inputs, 2, outputs, 3));
  CHECK((robot.action == Values{0.5F, 0.125F}));
}

TEST(accounts_are_asked_for_by_output_and_row) {
  Robots robots(limited_program(held(0)), 2);
  robots.observation = {5, 0, 0, 5};
  CHECK_OK(robots.step(robots.state));
  CHECK((account_of(robots.state, 0).clamped == std::vector<std::uint64_t>{1, 0}));
  CHECK((account_of(robots.state, 1).clamped == std::vector<std::uint64_t>{0, 1}));
  for (const std::size_t output : {kSum, kUnclamped}) {
    const Account none = account_of(robots.state, 1, output);
    CHECK(none.row.consecutive == 0 && (none.clamped == std::vector<std::uint64_t>{0, 0}) &&
          (none.slowed == none.clamped));
  }
  lram_account row;
  CHECK_OK(lram_state_account(robots.state.get(), kAction, 1, &row, nullptr, nullptr));
  CHECK(row.consecutive == 1);
  const auto refused = [](lram_status status, const std::string& text) {
    CHECK(status == LRAM_ERROR_ARGUMENT && lram_last_error() == text);
  };
  const lram_state* state = robots.state.get();
  refused(lram_state_account(state, 3, 0, &row, nullptr, nullptr), "index: expected less than 3, got 3");
  refused(lram_state_account(state, 0, 2, &row, nullptr, nullptr), "row: expected 0 to 1, got 2");
  refused(lram_state_account(state, 0, -1, &row, nullptr, nullptr), "row: expected 0 to 1, got -1");
  refused(lram_state_account(state, 0, 0, nullptr, nullptr, nullptr), "state, account: expected both, got NULL");
  refused(lram_state_account(nullptr, 0, 0, &row, nullptr, nullptr), "state, account: expected both, got NULL");
}

TEST(a_network_that_chooses_among_bins_is_held_and_counted) {
  constexpr std::size_t kActions = 3;
  constexpr std::size_t kTokens = 50;
  constexpr float kLimit = 1.5F;
  constexpr float kChange = 0.25F;
  Shape shape;
  shape.limit = kLimit;
  const TemporaryFile plain_file(make_artifact(shape));
  shape.said = interface_of(50, {{"action", true, {element("", "", -kLimit, kLimit, kChange, 0)}, 4}});
  const TemporaryFile file(make_artifact(shape));
  constexpr int kRows = 2;
  const ModelPointer plain_model = open_model(plain_file, "");
  const ModelPointer model = open_model(file, "", 2);
  const StatePointer plain = create_state(plain_model, kRows);
  const StatePointer state = create_state(model, kRows);
  std::uint64_t clamped[kRows][kActions] = {};
  std::uint64_t consecutive[kRows] = {};
  std::uint64_t stopped[kRows] = {};
  bool stops[kRows] = {};
  float before[kRows][kActions] = {};
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2);
  for (int step = 0; step < 200; ++step) {
    std::vector<float> observation(kRows * 20);
    for (float& value : observation) value = normal(random);
    const float numbers[kRows] = {0.5F, -0.5F};
    const float first[kRows] = {step % 60 == 0 ? 1.0F : 0.0F, step % 35 == 0 ? 1.0F : 0.0F};
    const lram_inputs inputs = {observation.data(), numbers, numbers, first};
    float action[kRows * kActions];
    float chosen[kRows * kActions];
    float logits[kRows * kActions * kTokens];
    const bool wanted = step % 3 != 0;  // logits
    const lram_outputs outputs = {action, wanted ? logits : nullptr};
    const lram_outputs plain_outputs = {chosen, logits};
    CHECK_OK(lram_step(state.get(), &inputs, &outputs));
    CHECK_OK(lram_step(plain.get(), &inputs, &plain_outputs));
    CHECK(bytes_of(state.get()) == bytes_of(plain.get()));
    for (std::size_t row = 0; row < kRows; ++row) {
      if (first[row] != 0) consecutive[row] = 0, stops[row] = false;
      bool any = false;
      for (std::size_t i = 0; i < kActions; ++i) {
        const float* of = logits + (row * kActions + i) * kTokens;
        const auto token = std::max_element(of, of + kTokens) - of;
        const float unclamped = 3 * (static_cast<float>(std::max<std::ptrdiff_t>(token - 18, 0)) * (2.0F / 32) - 1);
        CHECK(chosen[row * kActions + i] == std::min(std::max(unclamped, -kLimit), kLimit));
        if (chosen[row * kActions + i] != unclamped) ++clamped[row][i], any = true;
      }
      consecutive[row] = any ? consecutive[row] + 1 : 0;
      stops[row] = stops[row] || consecutive[row] > 4;
      if (stops[row]) ++stopped[row];
      for (std::size_t i = 0; i < kActions; ++i) {
        const float aim = stops[row] ? 0 : chosen[row * kActions + i];
        const float given =
            first[row] != 0 ? aim : std::min(std::max(aim, before[row][i] - kChange), before[row][i] + kChange);
        CHECK(action[row * kActions + i] == given);
        before[row][i] = given;
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    lram_account account;
    std::uint64_t found[kActions];
    CHECK_OK(lram_state_account(state.get(), 0, row, &account, found, nullptr));
    CHECK(std::equal(found, found + kActions, clamped[row]) && account.stopped == stopped[row]);
    CHECK(account.consecutive == consecutive[row]);
    CHECK_OK(lram_state_account(plain.get(), 0, row, &account, found, nullptr));  // without an envelope
    CHECK(std::equal(found, found + kActions, clamped[row]) && account.stopped == 0);
  }
  CHECK(clamped[0][0] + clamped[0][1] + clamped[0][2] > 0 && stopped[0] + stopped[1] > 0);
}

TEST(a_network_without_limits_is_held_to_its_change) {
  Shape shape;
  shape.said = interface_of(0, {{"action", true, {element("", "", -HUGE_VALF, HUGE_VALF, 0.125F)}}});
  const TemporaryFile file(make_artifact(shape));
  const ModelPointer model = open_model(file, "");
  const StatePointer state = create_state(model, 1);
  FieldArrays arrays(*model->engine, 1);
  std::vector<double> before(3);
  std::uint64_t slowed[3] = {};
  std::mt19937 random(3);
  for (int step = 0; step < 50; ++step) {
    for (std::size_t i = 0; i < 20; ++i) arrays.set(0, i, static_cast<double>(random() % 9) - 4);
    CHECK_OK(lram_step_fields(state.get(), arrays.inputs.data(), 4, arrays.outputs.data(), 2));
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(step == 0 || std::fabs(arrays.get(0, i) - before[i]) <= 0.125);
      before[i] = arrays.get(0, i);
    }
  }
  lram_account account;
  CHECK_OK(lram_state_account(state.get(), 0, 0, &account, nullptr, slowed));
  CHECK(slowed[0] + slowed[1] + slowed[2] > 0 && account.consecutive == 0);
}

int main() { return run_all(); }
