"""What a person reads first in a site's kit: README.txt and the commented policy.toml and site.toml."""

from __future__ import annotations

from typing import Final

README: Final = """\
Kit of the site "{label}" for the federation "{name}"
coordinator: {address}

What is here
  federation.toml  the federation's name and address and the coordinator's public key
  ca.pem           the certificate that the coordinator's server is recognised by
  site.toml        your data set: its name and its file
  policy.toml      what you allow; read it, and tighten it
Nothing here is secret yet, and the coordinator knows none of the keys that you are about to make.

What to do, on the machine that has the data
  1. Put this folder there, and close it to others:   chmod -R go-rwx {label}
  2. Make your keys:                                  tacit client enroll {label} --data YOUR.csv
     It prints a fingerprint. Tell it to the coordinator over the telephone, not by mail.
  3. Send request.json, and nothing else, to the coordinator. It holds public keys and your number of rows.
  4. When all sites have done so:                     tacit client run {label} --data YOUR.csv
     It shows the roster: who takes part, and under which rules. Compare the fingerprints and the digest with
     the other sites over the telephone, then sign it.

What is made here then
  identity.key     SECRET: signs in your name. Never leaves this machine, and is in no mail and no shared folder.
  node.key         SECRET: your node's key for the connection.
  request.json     public
  roster.jsonl     the rosters that you have accepted
  ledger, journal  what has been spent on your data, and in which sums you have taken part. Never restore them
                   from a backup: a site whose memory goes back is refused.
If a key may have been seen by others: tell the coordinator to revoke {label}, then tacit client enroll --new-keys.
"""

POLICY: Final = """\
# What this site allows. It is never sent to anybody, and can only tighten what the federation agreed on.
# A line that begins with '#' is not in force; docs/configuration.md explains each.

# The most that may ever be spent on this data set, per record and per client. A run that protects clients alone counts
# for both. With a ceiling, a run without privacy is refused.
# delta is below one over your number of records.
# epsilon_ceiling = 8.0
# delta = 1e-5

# Fewest honest sites in a sum that your update goes into.
# min_honest = 2

# Refuse experiments without secure aggregation (the default).
# require_secure_aggregation = true

# Rounds of training that are answered within an hour.
# max_rounds_per_hour = 3600

# Kinds of task whose code you have read and installed.
# allowed_tasks = ["tabular"]
"""

SITE: Final = """\
# This site's data. data_set names them in the ledger: keep it while a record stays the same, whatever the file
# is called; a new name is for data that share no record with the old.
{fields}"""
