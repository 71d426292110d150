"""The suites of the providers that are being checked; `ringspan plugin check` has pytest read it."""

from ringspan.testing.suites.check import being_checked, suite_of

globals().update({offered.title: suite_of(offered) for offered in being_checked.get()})
