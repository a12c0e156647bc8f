"""One table becomes the rows of several sites, as differently distributed as the experiment says."""

from simulations.partition.kinds import partition
from simulations.partition.site_rows import Affine, SiteRows

__all__ = ["Affine", "SiteRows", "partition"]
