"""Execution on a device: number formats, CUDA graphs, host-device copies, CPU threads and memory."""
