"""Packages that only some calls need, and that may not be installed."""


def needs(what: str, package: str) -> ImportError:
    """The error of a call that cannot go without this package."""
    return ImportError(f"{what} needs {package}, which is not installed: {installing(package)}.")


def installing(package: str) -> str:
    # The package itself, and no extra: gritax may have been installed from a folder, which then is no longer known.
    return f"pip install {package}"
