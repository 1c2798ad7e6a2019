"""Tokenizes datasets (``titok tokenize``).

::

    sources.py     entries (key, label, bytes) of a folder, of tar archives or of Parquet files, from any position on
    pipeline.py    read ahead ── decode in threads ── batches on the device (batches.py) ── shards
    formats.py     files of a shard: WebDataset, Parquet, .npy, .bin, JSON lines
    destination.py the output folder and its journal, from which a killed run resumes
    run.py         a run on this machine; on_ray.py: on a Ray cluster, shard by shard

The bytes of a shard depend on the source, the settings and the number of the shard alone.
"""
