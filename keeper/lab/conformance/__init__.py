"""One conformance suite for every adapter, also those of other packages.

The author of a protocol writes one `Subject`; `staged` sets a keeper up for it on a real chain, and every function in
`CHECKS` holds the adapter to what the protocol's own contracts say and do there.
"""

from keeper.lab.conformance.checks import CHECKS as CHECKS
from keeper.lab.conformance.stage import Stage as Stage
from keeper.lab.conformance.stage import staged as staged
from keeper.lab.conformance.subject import Act as Act
from keeper.lab.conformance.subject import Stop as Stop
from keeper.lab.conformance.subject import Subject as Subject
from keeper.lab.conformance.subject import Told as Told
