"""How networks run on a device: number formats, CUDA graphs, copies, memory, CPU threads."""
