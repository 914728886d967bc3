// The kernels of Mamba blocks of one instruction set; see ../table.h.
#pragma once
#include "scan.h"

#define LRAM_MAMBA_KERNELS {selective_scan}
