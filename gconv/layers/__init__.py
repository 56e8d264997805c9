"""What the Flax shells share: the configuration of a layer, its initial values, its application, its display.

No Flax here. A shell turns its arguments into a `Config`, stores the parameters in its framework's way, and calls `apply`.
"""

from gconv.layers.application import apply as apply
from gconv.layers.application import check_channels as check_channels
from gconv.layers.application import check_input as check_input
from gconv.layers.application import check_mask as check_mask
from gconv.layers.config import Config as Config
from gconv.layers.config import configure as configure
from gconv.layers.config import reconfigured as reconfigured
from gconv.layers.display import describe as describe
from gconv.layers.initial import bias_initializer as bias_initializer
from gconv.layers.initial import kernel_initializer as kernel_initializer
