"""The suites of the providers that are being checked, for pytest to read."""

from ringspan.testing.suites.check import being_checked, suite_of

globals().update({offered.title: suite_of(offered) for offered in being_checked.get()})
