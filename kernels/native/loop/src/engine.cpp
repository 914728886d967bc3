#include "engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace lram::loop {
namespace {

std::string number(double value) {
  std::array<char, 32> text = {};
  std::snprintf(text.data(), text.size(), "%g", value);
  return text.data();
}

Observation observation_of(const lram_model* model, std::size_t input, const lram_field& field) {
  Observation found = {field.name, field.element, field.size, input, {}, {}};
  if (field.element != LRAM_FLOAT32) return found;
  bool known = false;
  for (std::size_t i = 0; i < field.size; ++i) {
    lram_element_facts facts;
    must(lram_input_element(model, input, i, &facts));
    known = known || std::isfinite(facts.low) || std::isfinite(facts.high);
    found.low.push_back(facts.low);
    found.high.push_back(facts.high);
  }
  if (!known) found.low = found.high = {};
  return found;
}

bool is_bounded(const lram_model* model, const lram_field& action) {
  if (action.element != LRAM_FLOAT32) return false;
  for (std::size_t i = 0; i < action.size; ++i) {
    lram_element_facts facts;
    must(lram_output_element(model, 0, i, &facts));
    if (std::isfinite(facts.low) || std::isfinite(facts.high) || std::isfinite(facts.most_change)) return true;
  }
  return action.most_clamps > 0;
}

std::string shown(const lram_field& field) {
  std::string shape;
  for (int axis = 0; axis < field.rank; ++axis) shape += (axis == 0 ? "" : ", ") + std::to_string(field.extents[axis]);
  return std::string(field.name) + ", " + name_of(field.element) + " of shape (" + shape + ")";
}

void expect_same(const Engine& other, const std::string& what, const std::string& own, const std::string& found) {
  if (own != found)
    throw Error(other.path + ": " + what + ": expected " + own + ", as in the policy that runs, got " + found +
                "; load it by itself");
}

using FieldOf = lram_status (*)(const lram_model*, size_t, lram_field*);
using ElementOf = lram_status (*)(const lram_model*, size_t, size_t, lram_element_facts*);

// What one of them does not say is not compared.
void check_element(const Engine& other, const std::string& of, const char* own, const char* found) {
  if (*own != '\0' && *found != '\0') expect_same(other, of, own, found);
}

void check_fields(const Engine& own, const Engine& other, const char* kind, std::size_t count, FieldOf field_of,
                  ElementOf element_of) {
  for (std::size_t i = 0; i < count; ++i) {
    lram_field one;
    lram_field two;
    must(field_of(own.model.get(), i, &one));
    must(field_of(other.model.get(), i, &two));
    expect_same(other, std::string(kind) + " " + std::to_string(i), shown(one), shown(two));
    const std::size_t elements = one.choices > 0 ? one.choices : one.element == LRAM_FLOAT32 ? one.size : 0;
    for (std::size_t k = 0; k < elements; ++k) {
      lram_element_facts facts;
      lram_element_facts others;
      must(element_of(own.model.get(), i, k, &facts));
      must(element_of(other.model.get(), i, k, &others));
      const std::string where = std::string(one.name) + ", element " + std::to_string(k);
      check_element(other, "name of " + where, facts.name, others.name);
      check_element(other, "unit of " + where, facts.unit, others.unit);
    }
  }
}

}  // namespace

void must(lram_status status) {
  if (status != LRAM_OK) throw Error(lram_last_error());
}

Engine::Engine(const std::string& file, const lram_options& options) : path(file) {
  lram_model* opened = nullptr;
  must(lram_open(path.c_str(), &options, &opened));
  model.reset(opened);
  must(lram_describe(opened, &about));
  state = new_state();
  for (std::size_t i = 0; i < about.inputs; ++i) {
    lram_field field;
    must(lram_input(opened, i, &field));
    const std::string name = field.name;
    std::size_t* const place = name == "return_to_go" ? &return_to_go
                               : name == "reward"     ? &reward
                               : name == "is_first"   ? &is_first
                                                      : nullptr;
    if (place == nullptr)
      observations.push_back(observation_of(opened, i, field));
    else if (field.size != 1 || field.element != LRAM_FLOAT32)
      throw Error(path + ": " + name + ": expected one float32, got " + shown(field));
    else
      *place = i;
  }
  if ((return_to_go != kNone || reward != kNone) && !(about.reward_scale > 0))
    throw Error(path + ": it is told a return or rewards, and does not say what they are divided by: step it yourself");
  if (observations.empty()) throw Error(path + ": expected a policy that observes something");
  must(lram_output(opened, 0, &action));
  if (action.element == LRAM_UINT8)
    throw Error(path + ": " + action.name + ": expected an action of float32 or int64, got uint8");
  bounded = is_bounded(opened, action);
  given.resize(about.inputs);
  if (return_to_go != kNone) given[return_to_go] = &return_to_go_value;
  if (reward != kNone) given[reward] = &reward_value;
  if (is_first != kNone) given[is_first] = &is_first_value;
  wanted.resize(about.outputs);
  floats.resize(action.element == LRAM_FLOAT32 ? action.size : 0);
  choices.resize(action.element == LRAM_INT64 ? action.size : 0);
  wanted[0] = action.element == LRAM_FLOAT32 ? static_cast<void*>(floats.data()) : choices.data();
}

StatePointer Engine::new_state() const {
  lram_state* made = nullptr;
  must(lram_state_create(model.get(), 1, &made));
  return StatePointer(made);
}

void Engine::warm_up(int steps) {
  const StatePointer another = new_state();
  std::vector<std::vector<std::uint64_t>> zeros;
  std::vector<const void*> in = given;
  for (const Observation& observation : observations) {
    zeros.emplace_back(observation.size + 1);  // of the widest type there is
    in[observation.input] = zeros.back().data();
  }
  const float first = 1;
  const float zero = 0;
  const float aim = about.reward_scale > 0 ? about.target_return / about.reward_scale : 0;
  std::vector<std::uint64_t> action_room(action.size + 1);
  std::vector<void*> out = wanted;
  out[0] = action_room.data();
  for (int i = 0; i < steps; ++i) {
    if (return_to_go != kNone) in[return_to_go] = &aim;
    if (reward != kNone) in[reward] = &zero;
    if (is_first != kNone) in[is_first] = i == 0 ? &first : &zero;
    must(lram_step_fields(another.get(), in.data(), in.size(), out.data(), out.size()));
  }
}

const unsigned char* Engine::source() const {
  const unsigned char* begin = about.source_sha256;
  const bool said =
      std::any_of(begin, begin + sizeof about.source_sha256, [](unsigned char byte) { return byte != 0; });
  return said ? begin : nullptr;
}

void check_alike(const Engine& own, const Engine& other) {
  const auto count = [&](const char* what, std::size_t one, std::size_t two) {
    expect_same(other, what, std::to_string(one), std::to_string(two));
  };
  count("inputs", own.about.inputs, other.about.inputs);
  count("outputs", own.about.outputs, other.about.outputs);
  check_fields(own, other, "input", own.about.inputs, lram_input, lram_input_element);
  check_fields(own, other, "output", own.about.outputs, lram_output, lram_output_element);
  expect_same(other, "reward_scale", number(own.about.reward_scale), number(other.about.reward_scale));
  expect_same(other, "reward feedback", own.about.feedback == LRAM_REWARD_OBSERVED ? "observed" : "none",
              other.about.feedback == LRAM_REWARD_OBSERVED ? "observed" : "none");
  if (own.about.rate > 0 && other.about.rate > 0)
    expect_same(other, "rate", number(own.about.rate), number(other.about.rate));
}

}  // namespace lram::loop
