// The kernels of traced programs of one instruction set; see ../table.h.
#pragma once
#include "pointwise.h"
#include "reduce.h"

#define LRAM_PROGRAM_KERNELS {pointwise, reduce, product}
