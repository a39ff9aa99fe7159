"""The names of the encoders and what each asks of the parameters, known without torch: a typo is found before a run.

A test compares them with torchvision's own list, and each rule with the network.
"""

from difflib import get_close_matches

from deploy.failure import install_command

RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
TORCHVISION = """
alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161 densenet169 densenet201
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_128gf regnet_y_16gf regnet_y_1_6gf
regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf resnext101_32x8d resnext101_64x4d
resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0
squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19
vgg19_bn vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
"""
OTHERS = (*TORCHVISION.split(),)  # and those of ours that are not ResNets
TIMM = "timm/"  # before the name of a network of timm, which only timm knows
TIMM_MISSING = f"timm is not installed; run {install_command('timm')}"
NO_BLOCKS = tuple(name for name in OTHERS if name.startswith(("alexnet", "inception", "vgg")))
# By the beginning of the name, in pixels: below these a layer has nothing left to pool.
SMALLEST = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "vgg": 32,
}


def unknown_encoder(name: str) -> str | None:
    """What to say of a name that no encoder has; None where one has it."""
    if name in RESNETS or name in OTHERS or (name.startswith(TIMM) and name != TIMM):
        return None
    close = get_close_matches(name, sorted((*RESNETS, *OTHERS)), n=3, cutoff=0.4)
    return (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"allowed: {', '.join(RESNETS)}, torchvision's, and timm/NAME"
    )


def fixed_shape(name: str, width: float, stem: str) -> str | None:
    """What to say of a width or stem that this encoder has not; None where it is right."""
    if name in RESNETS or (width == 1 and stem == "imagenet"):
        return None
    return (
        f"encoder {name!r} has no width or stem to choose (given width {width:g}, stem {stem!r}); leave them out, or "
        f"take one of {', '.join(RESNETS)}"
    )


def has_one_side(name: str) -> bool:
    """Whether a network of torchvision takes only images of the side that it was built for."""
    return name.startswith(("vit_", "maxvit"))


def side_fault(name: str, side: int) -> str | None:
    """Which ``side`` of an image in pixels the encoder takes instead; None where it takes this one."""
    if name.startswith("vit_") and side % (patch := int(name.rpartition("_")[2])):
        return f"of a multiple of {patch}"
    if name.startswith("maxvit") and -side % 224 > 3:  # windows of 7 divide every feature map; halves are rounded up
        return "of a multiple of 224"
    smallest = next((smallest for prefix, smallest in SMALLEST.items() if name.startswith(prefix)), 1)
    return f"of at least {smallest}" if side < smallest else None
