"""A whole data set made into tokens.

::

    sources.py     what there is: entries (key, label, bytes) of a folder, of tars or of Parquet files, from any place on
    pipeline.py    read ahead ── decode in threads (views.py) ── batches on the device ── shards
    formats.py     a shard as files: WebDataset, Parquet, .npy, .bin, JSON lines
    destination.py the folder they go to, file by file, so that a killed run goes on where it was
    run.py         all of it on this machine; on_ray.py: on many, shard by shard

What a shard holds depends on the source, the settings and the number of the shard, and on nothing else.
"""
