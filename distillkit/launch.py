"""stub"""
def start(command, config, stages=None):
    from distillkit.freeze import differences, freeze
    print(freeze(config))
    for s in (stages or {}).values(): print("STAGE", s.name, s.command, "\n".join(differences(config, s.config)))
