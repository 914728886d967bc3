// What an artifact says of its robot (see InterfaceHeader in format.h): read, checked, and put down at the fields.
#pragma once
#include <vector>

#include "engine.h"
#include "mapped_file.h"

namespace lram {

// Which output says what another one was before it was clamped: of its name and "_unclamped"; outputs.size(): none.
std::size_t unclamped_of(const std::vector<Field>& outputs, std::size_t output);
// Finds out of every output how many choices it has: the logits that its name and "_logits" is the name of.
void count_choices(std::vector<Field>& outputs);

// Returns the rate. Fields know their choices, and whether they are clamped. Throws Error naming what is damaged.
double read_interface(const MappedFile& file, const TensorEntry& entry, std::vector<Field>& inputs,
                      std::vector<Field>& outputs);

}  // namespace lram
