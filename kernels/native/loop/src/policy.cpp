#include <lram/loop/policy.h>

#include <algorithm>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>

#include "engine.h"
#include "saved_run.h"

namespace lram::loop {
namespace {

constexpr auto kNap = std::chrono::milliseconds(1);

lram_options or_defaults(const lram_options* options) {
  lram_options chosen;
  lram_options_init(&chosen);
  return options == nullptr ? chosen : *options;
}

std::vector<int> cpus_of(const lram_options& options) {
  if (options.cpus == nullptr || options.cpu_count <= 0) return {};
  return {options.cpus, options.cpus + options.cpu_count};
}

ElementName named(const lram_element_facts& facts, std::size_t element) noexcept {
  ElementName name = {};
  if (facts.name[0] != '\0')
    std::copy(std::begin(facts.name), std::end(facts.name), name.begin());
  else
    std::snprintf(name.data(), name.size(), "%zu", element);
  return name;
}

lram_element_facts nothing() noexcept { return {"", "", 0, 0, 0, 0}; }

void add(Held& to, const Held& more) noexcept {
  for (std::size_t i = 0; i < to.clamped.size(); ++i) to.clamped[i] += more.clamped[i];
  for (std::size_t i = 0; i < to.slowed.size(); ++i) to.slowed[i] += more.slowed[i];
  to.stopped += more.stopped;
}

// Into room for them; 0 where nothing is counted.
void read_held(const Engine& engine, Held& room) noexcept {
  lram_account account = {};
  if (!engine.floats.empty())
    static_cast<void>(lram_state_account(engine.state.get(), 0, 0, &account, room.clamped.data(), room.slowed.data()));
  room.stopped = account.stopped;
}

}  // namespace

struct Policy::Offer {
  std::unique_ptr<Engine> engine;
  std::vector<float> state;  // room for one on its way
  Held held;                 // room for counts
  std::atomic<Taken> taken{Taken::no};
};

Policy::Policy(const std::string& path, const lram_options* options)
    : options_(or_defaults(options)), cpus_(cpus_of(options_)) {
  if (options_.cpus != nullptr) options_.cpus = cpus_.data();
  engine_ = std::make_unique<Engine>(path, options_);
  const lram_description& said = about();
  target_ = return_to_go_ = engine_->return_to_go == kNone ? 0 : said.target_return / said.reward_scale;
  const std::size_t floats = engine_->floats.size();
  before_.resize(floats);
  carried_ = {std::vector<std::uint64_t>(floats), std::vector<std::uint64_t>(floats), 0};
}

Policy::~Policy() = default;

const lram_description& Policy::about() const noexcept { return engine_->about; }
const std::vector<Observation>& Policy::observations() const noexcept { return engine_->observations; }
const lram_field& Policy::action() const noexcept { return engine_->action; }
const std::string& Policy::path() const noexcept { return engine_->path; }
bool Policy::is_bounded() const noexcept { return engine_->bounded; }
void Policy::warm_up(int steps) { engine_->warm_up(steps); }

void Policy::settle() noexcept { static_cast<void>(lram_settle(engine_->state.get())); }

ElementName Policy::element_of(const Observation& observation, std::size_t element) const noexcept {
  lram_element_facts facts = nothing();
  static_cast<void>(lram_input_element(engine_->model.get(), observation.input, element, &facts));
  return named(facts, element);
}

ElementName Policy::element_of_action(std::size_t element) const noexcept {
  lram_element_facts facts = nothing();
  static_cast<void>(lram_output_element(engine_->model.get(), 0, element, &facts));
  return named(facts, element);
}

void Policy::aim_at(float target_return) {
  if (engine_->return_to_go == kNone) throw Error("target_return: this policy aims at no return; leave it out");
  if (!std::isfinite(target_return)) throw Error("target_return: expected a finite number");
  target_ = target_return / about().reward_scale;
}

void Policy::reset() noexcept {
  static_cast<void>(lram_state_reset(engine_->state.get(), nullptr, 0));  // what keeps it from that, a step will say
  return_to_go_ = target_;
  is_first_ = true;
  known_ = false;
}

Trouble Policy::act(const void* const* observations, const double* reward) noexcept {
  Engine& engine = *engine_;
  engine.is_first_value = is_first_ ? 1 : 0;
  engine.return_to_go_value = return_to_go_;
  engine.reward_value = 0;
  if (engine.return_to_go != kNone) {
    const bool observed = engine.about.feedback == LRAM_REWARD_OBSERVED;
    if (reward == nullptr && observed && !is_first_)
      return {Fault::no_result,
              "reward: required after the first step of an episode: this policy was exported with reward feedback "
              "'observed'"};
    if (reward != nullptr && !is_first_) {  // what came before an episode is no reward of it, whatever it is
      if (!(std::fabs(*reward) <= FLT_MAX))
        return {Fault::no_result, "reward: expected finite values, got %g", *reward};
      const float scaled = static_cast<float>(*reward) / engine.about.reward_scale;
      engine.return_to_go_value -= scaled;
      if (observed) engine.reward_value = scaled;
    }
  }
  for (std::size_t i = 0; i < engine.observations.size(); ++i)
    engine.given[engine.observations[i].input] = observations[i];
  const lram_status status = engine.step();
  if (status != LRAM_OK) {
    const char* text = lram_last_error();
    bool too_large = false;  // a number that was checked here to be finite
    for (const Observation& of : engine.observations)
      too_large =
          too_large || (std::strncmp(text, of.name.c_str(), of.name.size()) == 0 && text[of.name.size()] == ':');
    const bool observed = status == LRAM_ERROR_OVERFLOW || status == LRAM_ERROR_INPUT;
    return {too_large && observed ? Fault::out_of_limits : Fault::no_result, "%s", text};
  }
  return_to_go_ = engine.return_to_go_value;
  is_first_ = false;
  std::copy(engine.floats.begin(), engine.floats.end(), before_.begin());
  known_ = true;
  return {};
}

Action Policy::chosen() const noexcept { return {engine_->chosen(), engine_->action.element, engine_->action.size}; }

bool Policy::hold(const float* values) noexcept {
  if (before_.empty()) return true;
  if (lram_state_hold(engine_->state.get(), 0, values) != LRAM_OK) return false;
  std::copy_n(values, before_.size(), before_.begin());
  known_ = true;
  return true;
}

Held Policy::held() const {
  Held now = {std::vector<std::uint64_t>(before_.size()), std::vector<std::uint64_t>(before_.size()), 0};
  read_held(*engine_, now);
  add(now, carried_);
  return now;
}

std::string Policy::held_back() const {
  const Held all = held();
  std::string line;
  const auto part = [&](const char* word, const std::vector<std::uint64_t>& ticks) {
    std::string elements;
    for (std::size_t i = 0; i < ticks.size(); ++i)
      if (ticks[i] > 0)
        elements +=
            (elements.empty() ? "" : ", ") + std::string(element_of_action(i).data()) + " " + std::to_string(ticks[i]);
    if (!elements.empty()) line += (line.empty() ? "" : "; ") + std::string(word) + ": " + elements;
  };
  part("clamped", all.clamped);
  part("slowed", all.slowed);
  if (all.stopped > 0)
    line += (line.empty() ? "" : "; ") + std::string("stopped for ") + std::to_string(all.stopped) +
            (all.stopped == 1 ? " step" : " steps");
  return line.empty() ? line : std::string(action().name) + ": " + line;
}

void Policy::save(const std::string& file) const {
  SavedRun run;
  if (engine_->source() != nullptr) std::copy_n(engine_->source(), run.source.size(), run.source.begin());
  run.target = target_;
  run.return_to_go = return_to_go_;
  run.is_first = is_first_;
  run.state.resize(about().state_size);
  must(lram_state_save(engine_->state.get(), run.state.data(), run.state.size()));
  write_run(file, run);
}

bool Policy::load(const std::string& file) {
  SavedRun run;
  if (!read_run(file, about().state_size, run)) return false;
  const unsigned char* own = engine_->source();
  const bool said = std::any_of(run.source.begin(), run.source.end(), [](unsigned char byte) { return byte != 0; });
  if (own != nullptr && said && !std::equal(run.source.begin(), run.source.end(), own))
    throw Error(file + ": expected a run of the weights of " + path() + ", got one of others");
  if (lram_state_load(engine_->state.get(), run.state.data(), run.state.size()) != LRAM_OK)
    throw Error(file + ": " + lram_last_error());
  target_ = run.target;
  return_to_go_ = run.return_to_go;
  is_first_ = run.is_first;
  known_ = false;
  return true;
}

// NOLINTNEXTLINE(bugprone-exception-escape): it exchanges no two things, as others of that name
bool Policy::swap(const std::string& path, double seconds) {
  const std::lock_guard<std::mutex> alone(swapping_);
  Offer offer;
  offer.engine = std::make_unique<Engine>(path, options_);
  check_alike(*engine_, *offer.engine);  // which nobody else exchanges
  offer.engine->warm_up(kWarmUpSteps);
  offer.state.resize(std::max(about().state_size, offer.engine->about.state_size));
  offer.held = {std::vector<std::uint64_t>(before_.size()), std::vector<std::uint64_t>(before_.size()), 0};
  offer_.store(&offer);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (offer.taken.load() == Taken::no) {
    std::this_thread::sleep_for(kNap);
    if (std::chrono::steady_clock::now() < end) continue;
    Offer* mine = &offer;
    if (offer_.compare_exchange_strong(mine, nullptr))
      throw Error(path + ": not swapped: no step was taken for " + std::to_string(static_cast<int>(seconds)) + " s");
  }
  if (offer.taken.load() == Taken::refused)
    throw Error(path + ": not swapped: the policy's safety has stopped the robot; begin an episode first");
  return offer.taken.load() == Taken::kept;
}

bool Policy::take_over() noexcept {
  Offer* offer = offer_.load();
  if (offer == nullptr || !offer_.compare_exchange_strong(offer, nullptr)) return false;
  const Taken taken = exchange(*offer);
  offer->taken.store(taken);  // from here on the offer may be gone
  return taken != Taken::refused;
}

Policy::Taken Policy::exchange(Offer& offer) noexcept {
  Engine& own = *engine_;
  Engine& other = *offer.engine;
  lram_account account = {};
  if (!own.floats.empty() && lram_state_account(own.state.get(), 0, 0, &account, nullptr, nullptr) == LRAM_OK &&
      account.is_stopped != 0)
    return Taken::refused;  // the other would know nothing of it
  const bool alike = own.source() != nullptr && other.source() != nullptr &&
                     std::equal(own.source(), own.source() + sizeof own.about.source_sha256, other.source());
  const bool kept = alike && own.about.state_size == other.about.state_size &&
                    lram_state_save(own.state.get(), offer.state.data(), own.about.state_size) == LRAM_OK &&
                    lram_state_load(other.state.get(), offer.state.data(), own.about.state_size) == LRAM_OK;
  if (!kept) {  // it stands where an episode begins
    return_to_go_ = target_;
    is_first_ = true;
  }
  if (known_) static_cast<void>(lram_state_hold(other.state.get(), 0, before_.data()));
  std::copy(own.floats.begin(), own.floats.end(), other.floats.begin());
  std::copy(own.choices.begin(), own.choices.end(), other.choices.begin());
  read_held(own, offer.held);
  add(carried_, offer.held);
  engine_.swap(offer.engine);
  return kept ? Taken::kept : Taken::restarted;
}

}  // namespace lram::loop
