// Some rows of a batch.
#pragma once

namespace lram {

// Arrays of a call that is about them have `count` rows, one after the other; where a batch is kept they have places.
struct ChosenRows {
  int count;
  const int* places;  // ascending, borrowed; NULL: they are all of the batch

  int place(int row) const { return places == nullptr ? row : places[row]; }
};

}  // namespace lram
