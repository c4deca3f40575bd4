"""Triton kernels that teacher and student share; in Triton's interpreter (`TRITON_INTERPRET=1`) they run on the CPU."""
