"""Optional dependencies: import them, or say which extra brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional module.

    Args:
        module: Dotted name of the module, for example ``"matplotlib.pyplot"``.
        extra: The extra of this package that installs it.

    Returns:
        The imported module.

    Raises:
        ImportError: If the module is not installed; the message names the extra.

    Example:
        >>> require("math", extra="plots").pi > 3
        True
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} is needed here but could not be imported ({error}); "
            f'install it with: pip install "pyro-dssm[{extra}]"'
        ) from error
