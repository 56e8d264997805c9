"""What would run, and what it costs, without running anything: of one operation, and of a whole model layer by layer."""

from gconv.explanation.model import Layer as Layer
from gconv.explanation.model import ModelExplanation as ModelExplanation
from gconv.explanation.operation import Explanation as Explanation
from gconv.explanation.operation import Role as Role
from gconv.explanation.operation import explain as explain
from gconv.explanation.operation import implementations as implementations
from gconv.explanation.operation import platform_here as platform_here
