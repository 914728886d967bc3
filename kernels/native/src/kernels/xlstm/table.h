// The kernels of xLSTM blocks of one instruction set; see ../table.h.
#pragma once
#include "lazy.h"
#include "mlstm.h"
#include "slstm.h"

#define LRAM_XLSTM_KERNELS  \
  {kMemoryVectors * kWidth, \
   query_key_value,         \
   gate_sums,               \
   memory,                  \
   normalizer,              \
   lazy_scores,             \
   lazy_memory,             \
   lazy_keep,               \
   lazy_flush,              \
   head_output,             \
   slstm_cell}
