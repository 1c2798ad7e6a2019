"""Works on datasets in bulk: ``titok tokenize``, ``titok detokenize``, ``titok sample``.

::

    job.py         the options of a command, and its computation: prepare, compute on a device, finish, make files
    tokenization.py    image files to tokens
    detokenization.py  tokens to images
    sampling.py        classes and seeds to tokens and images
    sources.py     entries (key, label, bytes) of a folder, of tar archives or of Parquet files, from any position on;
                   token_folders.py: of tokens
    pipeline.py    read ahead ── prepare in threads ── batches on the device (batches.py) ── finish in threads ── shards
    formats.py     files of a shard of tokens: WebDataset, Parquet, .npy, .bin, JSON lines
    image_formats.py                 of images: WebDataset, folder, .npz
    destination.py the output folder and its journal, from which a killed run resumes
    run.py         a run on this machine; on_ray.py: on a Ray cluster, shard by shard

The bytes of a shard depend on the source, the settings and the number of the shard alone.
"""
