// What a loop's policy keeps beside the library's state: rewards and returns, runs that are saved, artifacts that take
// over; and what systemd is told.
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

#include "loop_robots.h"

using namespace lram_testing;
using lram::loop::Fault;
using lram::loop::Loop;
using lram::loop::Options;
using lram::loop::Policy;

namespace {

Numbers observation_at(int step, std::size_t size) {
  Numbers values(size);
  for (std::size_t i = 0; i < size; ++i) values[i] = std::sin(static_cast<float>(step) + 0.3F * static_cast<float>(i));
  return values;
}

// What is thrown, in its words; "" where nothing is.
template <class Call>
std::string refused(Call call) {
  try {
    call();
  } catch (const lram::loop::Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// A path where nothing is yet.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/lram_loop_XXXXXX";
    folder_ = mkdtemp(name);
  }
  ~Folder() {
    unlink(file().c_str());
    rmdir(folder_.c_str());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string file() const { return folder_ + "/run"; }
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
};

std::string content_of(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// The state of a policy, by way of a file.
Numbers state_of(const Policy& policy) {
  const Folder place;
  policy.save(place.file());
  const std::string bytes = content_of(place.file());
  Numbers state((bytes.size() - 72) / sizeof(float));
  std::memcpy(state.data(), bytes.data() + 72, state.size() * sizeof(float));
  return state;
}

// Steps a policy over the good reading of a step.
lram::loop::Trouble act(Policy& policy, int step, const double* reward = nullptr) {
  const Numbers observation = observation_at(step, policy.observations()[0].size);
  const void* pointers[] = {observation.data()};
  return policy.act(pointers, reward);
}

// Actions of a policy from a step on.
std::vector<Numbers> actions(Policy& policy, int from, int count) {
  std::vector<Numbers> found;
  for (int step = from; step < from + count; ++step) {
    CHECK(!act(policy, step));
    const float* begin = policy.chosen().floats();
    found.emplace_back(begin, begin + policy.chosen().size);
  }
  return found;
}

Shape other_weights() {
  Shape shape;
  shape.seed = 2;
  shape.source = 0xba;
  return shape;
}

// Lets an artifact take over while a loop steps; what swap() returned or threw.
struct Swapped {
  bool kept = false;
  std::string error;
};
Swapped swap_under(Policy& policy, const std::string& path) {
  Swapped found;
  std::atomic<bool> done{false};
  std::thread thread([&] {
    found.error = refused([&] { found.kept = policy.swap(path); });
    done = true;
  });
  while (!done) {
    policy.take_over();
    std::this_thread::yield();
  }
  thread.join();
  return found;
}

}  // namespace

// ---- rewards and returns ---------------------------------------------------------------------------------------

TEST(returns_and_rewards_are_those_that_the_library_asks_for) {
  for (const lram_feedback feedback : {LRAM_REWARD_NONE, LRAM_REWARD_OBSERVED})
    for (const bool aims : {false, true}) {
      const TemporaryFile file(network(feedback));
      Policy policy(file.path());
      const ModelPointer model = open_model(file, "");
      const StatePointer state = create_state(model, 1);
      if (aims) {
        policy.aim_at(20);
        policy.reset();
      }
      float return_to_go = (aims ? 20.0F : 8.0F) / 2;
      for (int step = 0; step < 12; ++step) {
        const Numbers observation = observation_at(step, policy.observations()[0].size);
        const double given = 0.1 * step;
        const bool unknown = feedback == LRAM_REWARD_NONE && step % 3 == 2;  // as a robot may not know it
        const float scaled = step == 0 || unknown ? 0 : static_cast<float>(given) / 2;
        return_to_go -= scaled;
        const float reward = feedback == LRAM_REWARD_OBSERVED ? scaled : 0;
        const float first = step == 0 ? 1 : 0;
        std::vector<float> action(policy.about().action_size);
        const lram_inputs inputs = {observation.data(), &return_to_go, &reward, &first};
        const lram_outputs outputs = {action.data(), nullptr};
        CHECK_OK(lram_step(state.get(), &inputs, &outputs));
        CHECK(!act(policy, step, unknown ? nullptr : &given));
        CHECK(std::equal(action.begin(), action.end(), policy.chosen().floats()));
      }
      Numbers saved(policy.about().state_size);
      CHECK_OK(lram_state_save(state.get(), saved.data(), saved.size()));
      CHECK(state_of(policy) == saved);
    }
}

TEST(a_reward_that_is_needed_and_not_there_is_no_result) {
  const TemporaryFile file(network(LRAM_REWARD_OBSERVED));
  Policy policy(file.path());
  CHECK(!act(policy, 0));
  const auto trouble = act(policy, 1);
  CHECK(trouble.kind == Fault::no_result && contains(trouble.text.data(), "reward: required after the first step"));
  const double nan = std::nan("");
  CHECK(act(policy, 1, &nan).described() == "no result: reward: expected finite values, got nan");
  const double one = 1;
  CHECK(!act(policy, 1, &one));
}

TEST(rewards_of_steps_that_had_no_result_are_not_lost) {
  const TemporaryFile file(network(LRAM_REWARD_OBSERVED));
  Policy policy(file.path());
  Policy other(file.path());
  Options options;
  options.rate = 50;
  options.ticks = 2;
  options.by = lram::loop::By::hold;
  Loop loop(policy, options);
  const Numbers first = observation_at(0, policy.observations()[0].size);
  const Numbers second = observation_at(1, policy.observations()[0].size);
  loop.begin();
  CHECK(loop.step(0, first));
  for (int step = 0; step < 3; ++step) {  // of the second and third there is no reading
    for (int tick = 0; tick < 2; ++tick) {
      CHECK(loop.send(0, tick) != nullptr);
      loop.reward(0.25);
    }
    CHECK(loop.step(0, step < 2 ? lram::loop::Reading() : lram::loop::Reading(second)));
  }
  CHECK(loop.account().of(Fault::missing) == 2 && !loop.fault());
  const double all = 1.5;
  CHECK(!act(other, 0) && !act(other, 1, &all));
  CHECK(state_of(policy) == state_of(other));
}

TEST(a_reward_that_is_no_number_is_dropped) {
  const TemporaryFile file(network(LRAM_REWARD_OBSERVED));
  Policy policy(file.path());
  Options options;
  options.rate = 50;
  Loop loop(policy, options);
  const Numbers observation = observation_at(0, policy.observations()[0].size);
  loop.begin();
  CHECK(loop.step(0, observation));
  loop.reward(std::nan(""));
  CHECK(loop.step(0, observation) && loop.fault().kind == Fault::no_result);
  loop.reward(1);
  CHECK(loop.step(0, observation) && !loop.fault());
}

// ---- kinds of policies -----------------------------------------------------------------------------------------

TEST(images_and_choices_go_through_a_loop) {
  Shape shape;
  shape.images = shape.discrete = true;
  const TemporaryFile file(network(LRAM_REWARD_NONE, shape));
  Policy policy(file.path());
  Options options;
  options.rate = 10;
  options.ticks = 2;
  Loop loop(policy, options);
  const std::vector<std::uint8_t> image(policy.observations()[0].size, 17);
  loop.begin();
  const auto told = loop.update(0, image);
  CHECK(told.action != nullptr);
  if (told.action == nullptr) return;
  CHECK(told.action->size == 1 && told.action->choices() != nullptr);
  CHECK(told.action->floats() == nullptr);
  const std::int64_t chosen = *told.action->choices();
  const auto again = loop.update(0.05, image);
  CHECK(again.action != nullptr && *again.action->choices() == chosen);
  loop.not_sent("bus");
  CHECK(loop.step(0.1, Numbers{1}) && loop.fault().kind == Fault::unusable);
  options.linear = true;
  CHECK(contains(refused([&] { const Loop lines(policy, options); }), "linear: is for actions of float32, got int64"));
}

TEST(backbones_of_every_kind_go_through_a_loop) {
  for (const Shape& shape : {mamba(lram::Layout::tiled_int8), transformer(true, lram::Layout::tiled_int8)}) {
    const TemporaryFile file(network(LRAM_REWARD_NONE, shape));
    Policy policy(file.path());
    policy.warm_up();
    Options options;
    options.rate = 50;
    Loop loop(policy, options);
    const Numbers observation = observation_at(0, policy.observations()[0].size);
    loop.begin();
    for (int step = 0; step < 5; ++step) CHECK(loop.update(0.02 * step, observation).action != nullptr);
    CHECK(loop.account().steps == 5 && loop.faults_in_a_row() == 0);
  }
}

TEST(a_module_may_have_several_observations) {
  const Recurrent program(lram::Layout::tiled_float32, 3);
  const TemporaryFile file(program.file);
  Policy policy(file.path());
  const auto& observations = policy.observations();
  CHECK(observations.size() == 4);
  const std::vector<std::uint8_t> image(Recurrent::kImage, 3);
  const Numbers proprio(Recurrent::kProprio, 0.5F);
  const std::vector<std::int64_t> mode = {1};
  const Numbers unread = {1, 2};  // by the step; a robot has it all the same
  std::vector<lram::loop::Values> all;
  for (const auto& observation : observations)
    all.push_back(observation.element == LRAM_UINT8   ? lram::loop::Values(image)
                  : observation.element == LRAM_INT64 ? lram::loop::Values(mode)
                  : observation.name == "unread"      ? lram::loop::Values(unread)
                                                      : lram::loop::Values(proprio));
  Options options;
  options.rate = 50;
  Loop loop(policy, options);
  loop.begin();
  CHECK(loop.update(0, {all.data(), all.size()}).action != nullptr && !loop.fault());
  CHECK(loop.update(0.02, proprio).action != nullptr && loop.fault().kind == Fault::unusable);
  CHECK(loop.fault().text.data() == std::string("expected 4 observations, got 1"));
}

TEST(a_module_with_rewards_of_its_own_is_refused) {
  ProgramWriter w;
  const Place observation = w.input("observation", {2});
  w.input("reward", {});
  w.output("action", {2}, w.apply(Function::negative, 2, {observation}, 1));
  const TemporaryFile file(w.finish());
  CHECK(contains(refused([&] { const Policy policy(file.path()); }), "it is told a return or rewards"));
  CHECK(contains(refused([] { const Policy policy("/nowhere"); }), "/nowhere: cannot be opened"));
  const TemporaryFile follows(follower());
  Policy policy(follows.path());
  CHECK(contains(refused([&] { policy.aim_at(3); }), "this policy aims at no return"));
}

TEST(warming_up_leaves_no_trace) {
  const TemporaryFile file(network(LRAM_REWARD_OBSERVED));
  Policy policy(file.path());
  Policy other(file.path());
  CHECK(!act(policy, 0) && !act(other, 0));
  policy.warm_up();
  CHECK(state_of(policy) == state_of(other));
  const double reward = 1;
  CHECK(!act(policy, 1, &reward) && !act(other, 1, &reward));
  CHECK(state_of(policy) == state_of(other));
}

// ---- runs that go on -------------------------------------------------------------------------------------------

TEST(a_saved_run_goes_on_to_the_bit) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  const Folder place;
  Policy policy(file.path());
  CHECK(!policy.load(place.file()));  // not there yet
  policy.aim_at(3);
  policy.reset();
  const double reward = 0.5;
  CHECK(!act(policy, 0) && !act(policy, 1, &reward));
  policy.save(place.file());
  Policy again(file.path());
  CHECK(again.load(place.file()));
  CHECK(actions(again, 2, 10) == actions(policy, 2, 10));
  again.reset();
  policy.reset();
  CHECK(actions(again, 0, 10) == actions(policy, 0, 10));  // what it aims at is part of it
}

TEST(a_run_goes_on_in_a_loop_without_a_reset_of_the_robot) {
  const TemporaryFile file(network(LRAM_REWARD_OBSERVED));
  Policy policy(file.path());
  CHECK(!act(policy, 0));
  Options options;
  options.rate = 50;
  Loop loop(policy, options);
  loop.resume();
  const Numbers observation = observation_at(1, policy.observations()[0].size);
  CHECK(loop.step(0, observation) && !loop.fault());  // though nobody knows its reward
  CHECK(loop.account().episodes == 1);

  const TemporaryFile follows(follower(1));
  Policy other(follows.path());
  const Folder place;
  other.save(place.file());
  CHECK(other.load(place.file()));
  Loop resumed(other, {});
  FakeClock clock;
  Scripted robot(resumed, clock, {Numbers{3, 0}});
  robot.held = {0.5F, 0, 0};
  lram::loop::Around around;
  around.clock = &clock;
  around.resumed = true;
  lram::loop::run(resumed, robot, around);
  CHECK(robot.calls == "close " && robot.actions() == Numbers{1.5F});
}

TEST(a_file_that_is_no_run_of_this_policy_is_refused) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  const TemporaryFile others(network(LRAM_REWARD_NONE, other_weights()));
  const Folder place;
  Policy policy(file.path());
  Policy other(others.path());
  CHECK(!act(policy, 0));
  other.save(place.file());
  const Numbers before = state_of(policy);
  CHECK(contains(refused([&] { policy.load(place.file()); }), "expected a run of the weights of"));
  policy.save(place.file());
  const std::string whole = content_of(place.file());
  const auto write = [&](const std::string& bytes) { std::ofstream(place.file(), std::ios::binary) << bytes; };
  for (const std::size_t at : {std::size_t{9}, std::size_t{42}, std::size_t{48}, std::size_t{70}, whole.size() - 1}) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x40);
    write(damaged);
    CHECK(contains(refused([&] { policy.load(place.file()); }), "damaged"));
  }
  write(whole.substr(0, whole.size() - 4));
  CHECK(contains(refused([&] { policy.load(place.file()); }), "damaged"));
  for (const std::string& bytes : {std::string(), whole.substr(0, 40), "PK\3\4" + whole}) {
    write(bytes);
    CHECK(contains(refused([&] { policy.load(place.file()); }), "expected a saved run, got another file"));
  }
  CHECK(contains(refused([&] { policy.load(place.folder()); }), "cannot be read"));
  const TemporaryFile small(follower());
  Policy another(small.path());
  write(whole);
  CHECK(contains(refused([&] { another.load(place.file()); }), "numbers of state, as this policy has, got "));
  CHECK(state_of(policy) == before);
  write(whole);
  CHECK(policy.load(place.file()));
}

TEST(a_run_that_cannot_be_saved_leaves_nothing_behind) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  Policy policy(file.path());
  CHECK(contains(refused([&] { policy.save("/nowhere/run"); }), "/nowhere/run: not saved: No such file or directory"));
  const Folder place;
  mkdir(place.file().c_str(), 0700);  // no file can take its place
  CHECK(contains(refused([&] { policy.save(place.file()); }), "not saved: "));
  CHECK(rmdir(place.file().c_str()) == 0 && rmdir(place.folder().c_str()) == 0);  // there is nothing else in it
  CHECK(mkdir(place.folder().c_str(), 0700) == 0);
}

TEST(what_lies_beside_a_run_that_is_saved_is_not_written) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  Policy policy(file.path());
  const Folder place;
  const TemporaryFile other({'k', 'e', 'e', 'p'});
  const std::string link = place.file() + "." + std::to_string(getpid()) + ".part";
  CHECK(symlink(other.path().c_str(), link.c_str()) == 0);
  policy.save(place.file());
  struct stat facts = {};
  CHECK(lstat(place.file().c_str(), &facts) == 0 && S_ISREG(facts.st_mode));
  CHECK(stat(other.path().c_str(), &facts) == 0 && facts.st_size == 4);
  CHECK(policy.load(place.file()));
  CHECK(unlink(link.c_str()) == 0);
}

TEST(a_run_is_not_read_from_a_pipe) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  Policy policy(file.path());
  const Folder place;
  CHECK(mkfifo(place.file().c_str(), 0600) == 0);
  alarm(10);  // rather than to wait for ever
  CHECK(contains(refused([&] { policy.load(place.file()); }), "cannot be read: expected a file"));
  alarm(0);
}

// ---- artifacts that take over ----------------------------------------------------------------------------------

TEST(the_same_weights_take_over_where_the_run_is) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  const TemporaryFile again(network(LRAM_REWARD_NONE));
  Policy policy(file.path());
  Policy other(file.path());
  CHECK(actions(policy, 0, 5) == actions(other, 0, 5));
  const Swapped swapped = swap_under(policy, again.path());
  CHECK(swapped.kept && swapped.error.empty() && policy.path() == again.path());
  CHECK(actions(policy, 5, 5) == actions(other, 5, 5));
}

TEST(other_weights_begin_an_episode) {
  const TemporaryFile file(network(LRAM_REWARD_NONE));
  const TemporaryFile others(network(LRAM_REWARD_NONE, other_weights(), 100));
  Policy policy(file.path());
  Policy other(others.path());
  actions(policy, 0, 5);
  const Swapped swapped = swap_under(policy, others.path());
  CHECK(!swapped.kept && swapped.error.empty());
  other.aim_at(8);  // as the one that ran
  other.reset();
  CHECK(actions(policy, 0, 5) == actions(other, 0, 5));
}

TEST(what_takes_over_bounds_changes_from_what_was_sent_and_goes_on_counting) {
  const TemporaryFile file(follower(1));
  const TemporaryFile slower(follower(0.5F, 3));
  Policy policy(file.path());
  Loop loop(policy, {});
  loop.begin();
  const auto told = [&](float value) {
    const Numbers observation = {value, 0};
    return *loop.update(0, observation).action->floats();
  };
  CHECK(told(0) == 0 && told(3) == 1);
  std::thread thread([&] { CHECK(policy.swap(slower.path())); });
  while (policy.path() != slower.path()) loop.update(0, Numbers{3, 0});
  thread.join();
  CHECK(policy.held().slowed[0] >= 2);
  CHECK(told(0) > 0);
  loop.update(0, Numbers{4, 0});
  CHECK(loop.fault().kind == Fault::out_of_limits);  // of the one that took over
  CHECK(contains(policy.held_back(), "action: slowed: 0 "));
}

TEST(what_is_no_policy_for_this_loop_does_not_take_over) {
  const TemporaryFile file(follower());
  Policy policy(file.path());
  const TemporaryFile net(network(LRAM_REWARD_NONE));
  const TemporaryFile ankle(follower(HUGE_VALF, 8, "ankle"));
  const TemporaryFile rate(follower(HUGE_VALF, 8, "knee", 60));
  CHECK(contains(refused([&] { policy.swap("/nowhere"); }), "/nowhere: cannot be opened"));
  CHECK(contains(refused([&] { policy.swap(net.path()); }), "inputs: expected 2, as in the policy that runs, got "));
  CHECK(contains(refused([&] { policy.swap(ankle.path()); }),
                 "name of observation, element 1: expected knee, as in the policy that runs, got ankle"));
  CHECK(contains(refused([&] { policy.swap(rate.path()); }), "rate: expected 50, as in the policy that runs, got 60"));
  CHECK(contains(refused([&] { policy.swap(file.path(), 0.01); }), "not swapped: no step was taken"));
  CHECK(!policy.take_over() && policy.path() == file.path());
}

TEST(a_row_that_safety_has_stopped_is_not_let_go_by_a_swap) {
  const TemporaryFile file(limited_program(interface_of(
      50,
      {{"action", true, {element("hip", "", -1, 1, HUGE_VALF, 0.25F), element("knee", "", -1, 1, HUGE_VALF, 0)}, 1}})));
  Policy policy(file.path());
  Loop loop(policy, {});
  loop.begin();
  for (int step = 0; step < 3; ++step) loop.update(0.02 * step, Numbers{2, 0});
  CHECK(policy.held().stopped == 2);
  CHECK(contains(policy.held_back(), "action: clamped: hip 3; stopped for 2 steps"));
  CHECK(contains(swap_under(policy, file.path()).error, "the policy's safety has stopped the robot"));
  loop.begin();
  CHECK(swap_under(policy, file.path()).error.empty());
  CHECK(policy.held().stopped == 2);
}

// ---- systemd ---------------------------------------------------------------------------------------------------

TEST(systemd_is_told) {
  const Folder place;
  const int listening = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  CHECK(listening >= 0);
  if (listening < 0) return;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, place.file().c_str(), sizeof address.sun_path - 1);
  CHECK(bind(listening, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  const auto next = [&]() -> std::string {
    char text[64];
    const ssize_t size = recv(listening, text, sizeof text, 0);
    return size < 0 ? "" : std::string(text, static_cast<std::size_t>(size));
  };
  const auto tell = [&](const char* watchdog, const std::string& pid) {
    setenv("NOTIFY_SOCKET", place.file().c_str(), 1);
    setenv("WATCHDOG_USEC", watchdog, 1);
    setenv("WATCHDOG_PID", pid.c_str(), 1);
    lram::loop::Notifier notifier;
    notifier.ready();
    for (int i = 0; i < 3; ++i) notifier.alive();
    notifier.stopping();
  };
  tell("60000000", std::to_string(getpid()));
  CHECK(next() == "READY=1" && next() == "WATCHDOG=1" && next() == "STOPPING=1" && next().empty());
  tell("60000000", "1");
  CHECK(next() == "READY=1" && next() == "STOPPING=1" && next().empty());

  const TemporaryFile file(follower());
  Policy policy(file.path());
  Loop loop(policy, {});
  FakeClock clock;
  Scripted robot(loop, clock, {Numbers{1, 0}, Numbers{2, 0}});
  setenv("WATCHDOG_USEC", "1", 1);
  setenv("WATCHDOG_PID", "", 1);
  lram::loop::Around around;
  around.clock = &clock;
  lram::loop::run(loop, robot, around);
  CHECK(next() == "READY=1" && next() == "WATCHDOG=1" && next() == "WATCHDOG=1" && next() == "STOPPING=1");
  close(listening);
  tell("0", "");  // nobody listens any more
  unsetenv("NOTIFY_SOCKET");
}

int main() { return run_all(); }
