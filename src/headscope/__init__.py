"""headscope finds, verifies and explains attention heads in any decoder-only language model.

    import headscope as hs
    scan = hs.scan("gpt2")
    scan.heads("induction")

Names are loaded when first used, so that `import headscope` costs nothing. `__init__.pyi` is the list of them.
"""

# pyright: reportUnknownVariableType=false
import lazy_loader

from headscope.moved import install

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

install()
