"""What the installed command `dpm` begins with: `main`.

It is installed beside the package too, as `dpm_command`, because to import anything in the package is to import all of
it, and Ctrl-C is to be heard before.
"""
