#include "interface_writer.h"

#include <algorithm>

namespace lram_testing {
namespace {

template <class Part>
void append(std::vector<std::uint8_t>& bytes, const Part& part) {
  const auto* begin = reinterpret_cast<const std::uint8_t*>(&part);
  bytes.insert(bytes.end(), begin, begin + sizeof part);
}

template <std::size_t room>
void put(const std::string& text, char (&to)[room]) {
  std::copy_n(text.begin(), std::min(text.size(), room), to);
}

}  // namespace

lram::ElementFacts element(const std::string& name, const std::string& unit, float low, float high, float most_change,
                           float safe) {
  lram::ElementFacts facts = {{}, {}, low, high, most_change, safe};
  put(name, facts.name);
  put(unit, facts.unit);
  return facts;
}

std::vector<std::uint8_t> interface_of(double rate, const std::vector<Said>& fields) {
  std::vector<std::uint8_t> bytes;
  append(bytes, lram::InterfaceHeader{rate, static_cast<std::uint32_t>(fields.size()), 0});
  for (const Said& said : fields) {
    lram::FieldFacts field = {};
    put(said.name, field.name);
    field.output = said.output ? 1 : 0;
    field.elements = static_cast<std::uint32_t>(said.elements.size());
    field.most_clamps = said.most_clamps;
    append(bytes, field);
    for (const lram::ElementFacts& facts : said.elements) append(bytes, facts);
  }
  return bytes;
}

}  // namespace lram_testing
