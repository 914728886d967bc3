// The kernels of Decision Transformers of one instruction set; see ../table.h.
#pragma once
#include "attention.h"

#define LRAM_DECISION_TRANSFORMER_KERNELS {attention}
