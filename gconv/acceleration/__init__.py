"""Programs of others, made fast without a change to their code.

equation      how one convolution of lax is read: as a role of a geometry
lowering      the rule by which such an equation is lowered, and which equations it takes
install       what users call: for the process, or for a while
report        what was taken, and what was left to lax and why
drop_in       lax's function under another name
linear        the matrix product of a linear layer, by that function
surgery       the layers of an NNX model
"""

from gconv.acceleration.drop_in import conv_general_dilated as conv_general_dilated
from gconv.acceleration.install import accelerated as accelerated
from gconv.acceleration.install import install as install
from gconv.acceleration.install import uninstall as uninstall
from gconv.acceleration.report import Report as Report
from gconv.acceleration.surgery import Surgery as Surgery
from gconv.acceleration.surgery import accelerate as accelerate
