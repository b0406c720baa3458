"""Data sets and how they reach a step."""

from lpjax.data.digits import digits
from lpjax.data.folder import folder
from lpjax.data.idx import fashion_mnist, idx, mnist
from lpjax.data.parquet import parquet
from lpjax.data.source import Source
from lpjax.data.text import text
from lpjax.data.tfds_sets import cifar10, cifar100, imagenet2012

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (digits, mnist, fashion_mnist, idx, cifar10, cifar100, imagenet2012, folder, parquet, text)
}
"""What `config.data.name` can be."""
