// What an artifact says of its robot: told element by element, and refused where it is damaged.
#include <cstring>
#include <limits>

#include "interface_writer.h"
#include "program_writer.h"
#include "testing.h"

using namespace lram_testing;

namespace {

lram_status try_open(const std::vector<std::uint8_t>& content) {
  setenv("LRAM_ISA", "", 1);
  const TemporaryFile file(content);
  lram_model* model = nullptr;
  const lram_status status = lram_open(file.path().c_str(), nullptr, &model);
  const ModelPointer opened(model, lram_close);
  if (status != LRAM_OK) return status;
  const StatePointer state = create_state(opened, 2);  // what is accepted also runs
  FieldArrays arrays(*model->engine, 2);
  for (int step = 0; step < 2; ++step)
    CHECK_OK(lram_step_fields(state.get(), arrays.inputs.data(), arrays.inputs.size(), arrays.outputs.data(),
                              arrays.outputs.size()));
  return status;
}

// What an error says behind the name of the file.
std::string problem() {
  const std::string text = lram_last_error();
  const std::size_t colon = text.find(": ");
  return colon == std::string::npos ? text : text.substr(colon + 2);
}

void expect_refused(const std::vector<std::uint8_t>& said, const std::string& text) {
  const bool refused = try_open(limited_program(said)) == LRAM_ERROR_ARTIFACT;
  const bool told = refused && problem() == "interface: " + text;
  if (!told) std::printf("  expected: %s\n  got:      %s\n", text.c_str(), refused ? problem().c_str() : "it opens");
  CHECK(told);
}

lram_element_facts of_input(const ModelPointer& model, std::size_t input, std::size_t number) {
  lram_element_facts facts;
  CHECK_OK(lram_input_element(model.get(), input, number, &facts));
  return facts;
}
lram_element_facts of_output(const ModelPointer& model, std::size_t output, std::size_t number) {
  lram_element_facts facts;
  CHECK_OK(lram_output_element(model.get(), output, number, &facts));
  return facts;
}

bool same(float a, float b) { return std::isnan(a) ? std::isnan(b) : a == b; }
bool is(const lram_element_facts& found, const lram::ElementFacts& said) {
  return std::string(found.name) == said.name && std::string(found.unit) == said.unit && same(found.low, said.low) &&
         same(found.high, said.high) && same(found.most_change, said.most_change) && same(found.safe, said.safe);
}

const lram::ElementFacts kNothing = element("", "");
const lram::ElementFacts kHip = element("hip", "N*m", -1, 1, 0.5F, 0.25F);
const lram::ElementFacts kKnee = element("knee", "rad/s", -2, 0.5F, 0.125F, -0.5F);
const lram::ElementFacts kLidar = element("", "m", 0, 30);

std::vector<Said> whole() { return {{"observation", false, {kLidar}}, {"action", true, {kHip, kKnee}, 7}}; }

}  // namespace

TEST(a_module_tells_what_its_numbers_are) {
  const TemporaryFile file(limited_program(interface_of(62.5, whole())));
  const ModelPointer model = open_model(file, "");
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  CHECK(about.rate == 62.5);
  for (const std::size_t number : {0U, 1U}) CHECK(is(of_input(model, 0, number), kLidar));  // one for all
  CHECK(is(of_input(model, 1, 0), kNothing));
  CHECK(is(of_output(model, 0, 0), kHip) && is(of_output(model, 0, 1), kKnee));
  CHECK(is(of_output(model, 1, 1), kNothing) && is(of_output(model, 2, 0), kNothing));
  lram_field field;
  CHECK_OK(lram_output(model.get(), 0, &field));
  CHECK(field.most_clamps == 7 && field.choices == 0);
  CHECK_OK(lram_output(model.get(), 1, &field));
  CHECK(field.most_clamps == 0);
}

TEST(a_network_tells_what_its_numbers_are) {
  Shape shape;
  shape.limit = 2;
  shape.said = interface_of(200, {{"action", true, {3, element("", "N*m", -2, 2, HUGE_VALF, 0)}, 1},
                                  {"observation", false, {20, element("x", "1", -HUGE_VALF, 3)}}});
  const TemporaryFile file(make_artifact(shape));
  const ModelPointer model = open_model(file, "");
  CHECK(is(of_input(model, 0, 19), element("x", "1", -HUGE_VALF, 3)));
  CHECK(is(of_output(model, 0, 2), element("", "N*m", -2, 2, HUGE_VALF, 0)));
  CHECK(is(of_input(model, 3, 0), kNothing));
  lram_description about;
  CHECK_OK(lram_describe(model.get(), &about));
  CHECK(about.rate == 200);
}

TEST(a_discrete_action_tells_its_choices) {
  Shape shape;
  shape.images = shape.discrete = true;
  std::vector<lram::ElementFacts> choices;
  for (int choice = 0; choice < 18; ++choice) choices.push_back(element("choice " + std::to_string(choice), ""));
  shape.said = interface_of(0, {{"action", true, choices}, {"observation", false, {element("", "pixel")}}});
  const TemporaryFile file(make_artifact(shape));
  const ModelPointer model = open_model(file, "");
  lram_field field;
  CHECK_OK(lram_output(model.get(), 0, &field));
  CHECK(field.size == 1 && field.choices == 18);
  CHECK_OK(lram_output(model.get(), 1, &field));
  CHECK(field.size == 18 && field.choices == 0);
  CHECK(is(of_output(model, 0, 17), choices[17]) && is(of_input(model, 0, 431), element("", "pixel")));
  lram_element_facts facts;
  CHECK(lram_output_element(model.get(), 0, 18, &facts) == LRAM_ERROR_ARGUMENT);
  CHECK(lram_last_error() == std::string("element: expected less than 18, got 18"));
}

TEST(a_model_that_says_nothing_is_no_error) {
  for (const std::vector<std::uint8_t>& content : {make_artifact({}), small_program(lram::Layout::tiled_int8)}) {
    const TemporaryFile file(content);
    const ModelPointer model = open_model(file, "");
    lram_description about;
    CHECK_OK(lram_describe(model.get(), &about));
    CHECK(about.rate == 0 && is(of_input(model, 0, 19), kNothing) && is(of_output(model, 0, 2), kNothing));
    lram_element_facts facts;
    CHECK(lram_input_element(model.get(), 0, 20, &facts) == LRAM_ERROR_ARGUMENT);
    CHECK(lram_last_error() == std::string("element: expected less than 20, got 20"));
    CHECK(lram_output_element(model.get(), 2, 0, &facts) == LRAM_ERROR_ARGUMENT);
    CHECK(lram_last_error() == std::string("index: expected less than 2, got 2"));
    for (auto* tell : {lram_input_element, lram_output_element}) {
      CHECK(tell(nullptr, 0, 0, &facts) == LRAM_ERROR_ARGUMENT);
      CHECK(tell(model.get(), 0, 0, nullptr) == LRAM_ERROR_ARGUMENT);
    }
  }
}

TEST(an_interface_is_no_weight) {
  const auto weights = [](const std::vector<std::uint8_t>& content) {
    const TemporaryFile file(content);
    lram_description about;
    CHECK_OK(lram_describe(open_model(file, "").get(), &about));
    return about.weight_bytes;
  };
  CHECK(weights(limited_program(interface_of(50, whole()))) == weights(limited_program({})));
  Shape shape;
  shape.said = interface_of(50, {});
  CHECK(weights(make_artifact(shape)) == weights(make_artifact({})));
}

TEST(a_damaged_interface_is_refused) {
  CHECK(try_open(limited_program(interface_of(50, whole()))) == LRAM_OK);
  const auto refused = [](double rate, const std::vector<Said>& fields, const std::string& text) {
    expect_refused(interface_of(rate, fields), text);
  };
  for (const double rate : {-1.0, std::numeric_limits<double>::infinity(), std::nan("")})
    refused(rate, whole(), "rate: expected a positive number");
  refused(0, {{"action", true, {}}}, "field 0: elements: expected 1 or 2, got 0");
  refused(0, {{"action", true, {3, kHip}}}, "field 0: elements: expected 1 or 2, got 3");
  refused(0, {{"action", false, {kHip, kHip}}}, "field 0: name: no such input: action");
  refused(0, {{"", true, {kHip, kHip}}}, "field 0: name: no such output: ");
  refused(0, {{std::string(72, 'x'), true, {kHip, kHip}}}, "field 0: name: expected at most 71 bytes");
  refused(0, {{"action\n", true, {kHip, kHip}}}, "field 0: name: expected UTF-8 without control characters");
  refused(0, {whole()[0], whole()[0]}, "field 1: name: an earlier field has it, too: observation");
  refused(0, {{"action", true, {kHip}}}, "field 0: element 0: name: expected none of what is said of all elements");

  const auto spoilt = [&](const std::string& text, void (*change)(lram::ElementFacts&), const char* name = "action") {
    std::vector<lram::ElementFacts> elements = {kKnee, kKnee};
    change(elements[1]);
    refused(0, {{name, name == std::string("action"), elements}}, "field 0: element 1: " + text);
  };
  spoilt("name: expected at most 71 bytes", [](auto& e) { std::memset(e.name, 'x', sizeof e.name); });
  spoilt("name: expected zeros after its end", [](auto& e) { e.name[71] = 'x'; });
  spoilt("name: expected UTF-8 without control characters", [](auto& e) { e.name[0] = '\x1b'; });
  spoilt("unit: expected at most 15 bytes", [](auto& e) { std::memset(e.unit, 'x', sizeof e.unit); });
  spoilt("unit: expected UTF-8 without control characters", [](auto& e) { e.unit[0] = '\xff'; });
  spoilt("limits: expected low below high, got 1 and 0.5", [](auto& e) { e.low = 1; });
  spoilt("limits: expected low below high, got nan and 0.5", [](auto& e) { e.low = std::nanf(""); });
  spoilt("limits: expected low below high, got -2 and nan", [](auto& e) { e.high = std::nanf(""); });
  spoilt("limits: expected low below high, got inf and inf", [](auto& e) { e.low = e.high = HUGE_VALF; });
  spoilt("most_change: expected a positive number", [](auto& e) { e.most_change = -1; });
  spoilt("most_change: expected a positive number", [](auto& e) { e.most_change = std::nanf(""); });
  spoilt("safe: expected a finite number", [](auto& e) { e.safe = HUGE_VALF; });
  spoilt("safe: expected one for every element, or none", [](auto& e) { e.safe = std::nanf(""); });
  spoilt("safe: expected a number within its limits, got 0.75", [](auto& e) { e.safe = 0.75F; });
  refused(0, {{"observation", false, {element("", "", 0, 1, 1)}}},
          "field 0: element 0: safety: expected none of what is no output of float32");
  refused(0, {{"action", true, {element("", "", -1, 1, 1)}, 3}},
          "field 0: most_clamps: expected an output that limits clamp, and a safe action");
  refused(0, {{"sum", true, {element("", "", -1, 1, 1, 0)}, 3}},
          "field 0: most_clamps: expected an output that limits clamp, and a safe action");

  Shape image;
  image.images = image.discrete = true;
  image.said = interface_of(0, {{"action", true, {element("", "", 0, 3)}}});
  CHECK(try_open(make_artifact(image)) == LRAM_ERROR_ARTIFACT);
  CHECK(problem() == "interface: field 0: element 0: limits: expected none of what is not float32");
}

TEST(an_interface_ends_where_it_says) {
  const std::vector<std::uint8_t> said = interface_of(50, whole());
  for (std::size_t size = 4; size < said.size(); size += 4) {
    CHECK(try_open(limited_program({said.begin(), said.begin() + static_cast<std::ptrdiff_t>(size)})) ==
          LRAM_ERROR_ARTIFACT);
    CHECK(problem().find("interface: ") == 0 && problem().find(" bytes, got ") != std::string::npos);
  }
  std::vector<std::uint8_t> longer = said;
  longer.resize(said.size() + 4);
  expect_refused(longer, "expected its end, got 4 bytes more");
  const auto with = [&](std::size_t at) {
    std::vector<std::uint8_t> changed = said;
    changed[at] = 1;
    return changed;
  };
  expect_refused(with(12), "header: expected a zero at its end");
  expect_refused(with(16 + 84), "field 0: expected a zero at its end");
  std::vector<std::uint8_t> other = said;
  other[16 + 72] = 2;
  expect_refused(other, "field 0: output: expected 0 or 1, got 2");
}

TEST(an_interface_that_lies_does_no_harm) {  // even with the right checksum
  const std::vector<std::uint8_t> said = interface_of(50, whole());
  Shape shape;
  for (const std::uint32_t value : {0U, 1U, 2U, 20U, 0x7fU, 0x10000U, 0x7f800000U, 0x7fc00000U, 0xffffffffU})
    for (std::size_t at = 0; at < said.size(); at += 4) {
      std::vector<std::uint8_t> changed = said;
      std::memcpy(changed.data() + at, &value, sizeof value);
      try_open(limited_program(changed));
    }
}

TEST(an_interface_has_its_place_in_a_program) {
  std::vector<std::uint8_t> bytes = limited_program(interface_of(50, whole()));
  Tables tables(bytes.data());
  const std::uint32_t last = tables.header.tensors - 1;
  const auto refused = [&](const std::string& text) {
    seal(bytes);
    const bool found = try_open(bytes) == LRAM_ERROR_ARTIFACT && problem() == text;
    if (!found) std::printf("  expected: %s\n  got:      %s\n", text.c_str(), problem().c_str());
    CHECK(found);
  };
  bytes[8] = 1;  // a version that has none
  refused("tensor " + std::to_string(last) + ": role: expected 0 to 0, got 15");
  bytes[8] = 2;
  tables.tensors[0].role = lram::kInterface;
  refused("tensor 0: role: expected 0 to 0, got 15");
  tables.tensors[0].role = 0;
  tables.tensors[last].layout = lram::kTwoPlanes;  // no matter to what has none
  seal(bytes);
  CHECK(try_open(bytes) == LRAM_OK);
}

int main() { return run_all(); }
