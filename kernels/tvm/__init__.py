"""Step kernels of the target `tvm`, in TVMScript."""
