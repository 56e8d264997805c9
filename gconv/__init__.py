"""gconv: grouped convolution for JAX."""

from gconv.op import grouped_conv as grouped_conv
from gconv.op import grouped_conv_transpose as grouped_conv_transpose

__version__ = "0.1.0"
