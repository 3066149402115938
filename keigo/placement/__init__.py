"""Which tier a file belongs on: policies.

Owns the contract between the volume and a policy (`policy`) and the policies themselves (`levels`). May
import `keigo.lsm`; knows nothing of directories, of the catalog or of time: all that a policy may know is
passed in. Promises that a policy is a pure, deterministic function of plain data, and that each of its
decisions carries a reason that a user can read.
"""
