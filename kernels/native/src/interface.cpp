#include "interface.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.h"
#include "text.h"

namespace lram {
namespace {

std::size_t place_of(const std::vector<Field>& fields, const std::string& name) {
  const auto found = std::find_if(fields.begin(), fields.end(), [&](const Field& field) { return field.name == name; });
  return static_cast<std::size_t>(found - fields.begin());
}

// Goes through the words of an interface, each part checked before it is handed out.
class Reader {
 public:
  Reader(const MappedFile& file, const TensorEntry& entry)
      : file_(file), at_(file.bytes() + entry.offset), left_(static_cast<std::size_t>(entry.bytes)) {
    if (layout_of(entry) != Layout::plain_float32) refuse("expected plain words");
  }

  double read(std::vector<Field>& inputs, std::vector<Field>& outputs) {
    const auto& header = *take<InterfaceHeader>("header", 1);
    if (!std::isfinite(header.rate) || header.rate < 0) refuse("rate: expected a positive number");
    if (header.zero != 0) refuse("header: expected a zero at its end");
    for (std::uint32_t i = 0; i < header.fields; ++i) read_field("field " + std::to_string(i), inputs, outputs);
    if (left_ != 0) refuse("expected its end, got " + std::to_string(left_) + " bytes more");
    return header.rate;
  }

 private:
  [[noreturn]] void refuse(const std::string& problem) const { file_.refuse("interface: " + problem); }

  template <class Part>
  const Part* take(const std::string& name, std::size_t count) {
    if (count > left_ / sizeof(Part))
      refuse(name + ": expected " + std::to_string(count * sizeof(Part)) + " bytes, got " + std::to_string(left_));
    const auto* found = reinterpret_cast<const Part*>(at_);
    at_ += count * sizeof(Part);
    left_ -= count * sizeof(Part);
    return found;
  }

  template <std::size_t room>
  void check_text(const char (&text)[room], const std::string& name) const {
    const char* end = std::find(text, text + room, '\0');
    if (end == text + room) refuse(name + ": expected at most " + std::to_string(room - 1) + " bytes");
    if (std::any_of(end, text + room, [](char c) { return c != '\0'; }))
      refuse(name + ": expected zeros after its end");
    if (!is_printable_utf8(text, static_cast<std::size_t>(end - text)))
      refuse(name + ": expected UTF-8 without control characters");
  }

  void read_field(const std::string& place, std::vector<Field>& inputs, std::vector<Field>& outputs) {
    const auto& said = *take<FieldFacts>(place, 1);
    check_text(said.name, place + ": name");
    if (said.output > 1) refuse(place + ": output: expected 0 or 1, got " + std::to_string(said.output));
    if (said.zero != 0) refuse(place + ": expected a zero at its end");
    std::vector<Field>& side = said.output == 1 ? outputs : inputs;
    const std::size_t index = place_of(side, said.name);
    if (index == side.size())
      refuse(place + ": name: no such " + (said.output == 1 ? "output: " : "input: ") + said.name);
    Field& field = side[index];
    if (field.facts != nullptr) refuse(place + ": name: an earlier field has it, too: " + said.name);
    if (said.elements != 1 && said.elements != field.described())
      refuse(place + ": elements: expected 1 or " + std::to_string(field.described()) + ", got " +
             std::to_string(said.elements));
    field.facts = take<ElementFacts>(place + ": elements", said.elements);
    field.fact_count = said.elements;
    field.most_clamps = said.most_clamps;
    for (std::size_t i = 0; i < field.fact_count; ++i)
      check_element(field, said.output == 1, i, place + ": element " + std::to_string(i));
    if (field.most_clamps > 0 && !(field.clamps && has_safe(field.facts[0])))
      refuse(place + ": most_clamps: expected an output that limits clamp, and a safe action");
  }

  static bool has_safe(const ElementFacts& facts) { return !std::isnan(facts.safe); }

  void check_element(const Field& field, bool output, std::size_t element, const std::string& place) const {
    const ElementFacts& facts = field.facts[element];
    check_text(facts.name, place + ": name");
    check_text(facts.unit, place + ": unit");
    if (facts.name[0] != '\0' && field.fact_count != field.described())
      refuse(place + ": name: expected none of what is said of all elements");
    if (!(facts.low <= facts.high) || facts.low == HUGE_VALF || facts.high == -HUGE_VALF)
      refuse(place + ": limits: expected low below high, got " + shown(facts.low) + " and " + shown(facts.high));
    if (!(facts.most_change >= 0)) refuse(place + ": most_change: expected a positive number");
    if (std::isinf(facts.safe)) refuse(place + ": safe: expected a finite number");
    if (has_safe(facts) != has_safe(field.facts[0])) refuse(place + ": safe: expected one for every element, or none");
    if (has_safe(facts) && (facts.safe < facts.low || facts.safe > facts.high))
      refuse(place + ": safe: expected a number within its limits, got " + shown(facts.safe));
    const bool numbers = field.element == Element::float32;
    if (!numbers && (std::isfinite(facts.low) || std::isfinite(facts.high)))
      refuse(place + ": limits: expected none of what is not float32");
    if (!(numbers && output) && (has_safe(facts) || std::isfinite(facts.most_change)))
      refuse(place + ": safety: expected none of what is no output of float32");
  }

  const MappedFile& file_;
  const std::uint8_t* at_;
  std::size_t left_;
};

}  // namespace

std::size_t unclamped_of(const std::vector<Field>& outputs, std::size_t output) {
  const Field& field = outputs[output];
  const std::size_t found = place_of(outputs, field.name + "_unclamped");
  const bool fits = found < outputs.size() && field.element == Element::float32 &&
                    outputs[found].element == Element::float32 && outputs[found].size() == field.size();
  return fits ? found : outputs.size();
}

void count_choices(std::vector<Field>& outputs) {
  for (Field& field : outputs) {
    const std::size_t found = place_of(outputs, field.name + "_logits");
    if (found == outputs.size() || field.element != Element::int64 || field.size() != 1) continue;
    const Field& logits = outputs[found];
    if (logits.element == Element::float32 && !logits.extents.empty() && logits.size() == logits.extents.back())
      field.choices = logits.size();
  }
}

double read_interface(const MappedFile& file, const TensorEntry& entry, std::vector<Field>& inputs,
                      std::vector<Field>& outputs) {
  return Reader(file, entry).read(inputs, outputs);
}

}  // namespace lram
