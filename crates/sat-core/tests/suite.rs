//! One suite, run on every device of the build.
//!
//! The expected numbers come from three places: the `f64` reference, itself checked against finite
//! differences and against values computed with mpmath at 40 digits; and mathematics.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]
#![allow(clippy::single_range_in_vec_init, reason = "Burn's slice takes arrays of ranges")]

mod common;

use burn::tensor::{DType, Device, FloatDType, GradientCheckpointingStrategy, Tensor, TensorData};
use common::{devices, to_vec, vector};
use proptest::prelude::*;
use sat_core::{
    ActivationConfig, ActivationError, ActivationExt, Curve, Function, Gradient, Learnable, Pair,
    Sharing,
    tensor::{activate, activate_with_parameters},
};

/// (curve, [(x, f(x), f'(x), df/da)]), computed with mpmath at 40 digits.
#[rustfmt::skip]
#[allow(clippy::excessive_precision, clippy::type_complexity)]
const KNOWN: &[(&str, &[(f64, f64, f64, f64)])] = &[
    ("relu", &[
        (-37.5, 0.0, 0.0, 0.0),
        (-9.25, 0.0, 0.0, 0.0),
        (-3.0, 0.0, 0.0, 0.0),
        (-1.125, 0.0, 0.0, 0.0),
        (-0.0625, 0.0, 0.0, 0.0),
        (-0.001, 0.0, 0.0, 0.0),
        (0.0001, 0.0001, 1.0, 0.0),
        (0.015625, 0.015625, 1.0, 0.0),
        (0.5, 0.5, 1.0, 0.0),
        (1.75, 1.75, 1.0, 0.0),
        (6.0, 6.0, 1.0, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("softplus", &[
        (-37.5, 5.1755550058018684e-17, 5.1755550058018683e-17, 0.0),
        (-9.25, 9.610703363248456e-5, 9.6102415499473949e-5, 0.0),
        (-3.0, 0.048587351573742059, 0.047425873177566781, 0.0),
        (-1.125, 0.28115013624831478, 0.24508501313237171, 0.0),
        (-0.0625, 0.66238538235777553, 0.48438008427698437, 0.0),
        (-0.001, 0.6926473055599401, 0.49975000002083333, 0.0),
        (0.0001, 0.69319718180994531, 0.50002499999997917, 0.0),
        (0.015625, 0.7009901978276345, 0.50390617052908051, 0.0),
        (0.5, 0.97407698418010668, 0.62245933120185456, 0.0),
        (1.75, 1.9102241504380872, 0.85195280196831053, 0.0),
        (6.0, 6.0024756851377304, 0.99752737684336523, 0.0),
        (29.0, 29.000000000000254, 0.99999999999974563, 0.0),
    ]),
    ("silu", &[
        (-37.5, -1.9408331271757006e-15, -1.8890775771176818e-15, 0.0),
        (-9.25, -0.00088894734337013403, -0.00079275949788371037, 0.0),
        (-3.0, -0.14227761953270034, -0.088104106015169617, 0.0),
        (-1.125, -0.27572063977391817, 0.036939369978310201, 0.0),
        (-0.0625, -0.030273755267311523, 0.468770333137434, 0.0),
        (-0.001, -0.00049975000002083334, 0.49950000008333332, 0.0),
        (0.0001, 5.0002499999997919e-5, 0.50004999999991667, 0.0),
        (0.015625, 0.0078735339145168829, 0.50781218212020235, 0.0),
        (0.5, 0.31122966560092728, 0.73996118730265181, 0.0),
        (1.75, 1.4909174034445434, 1.0726789460449571, 0.0),
        (6.0, 5.9851642610601914, 1.0123264325915255, 0.0),
        (29.0, 28.999999999992623, 1.0000000000071223, 0.0),
    ]),
    ("gelu", &[
        (-37.5, -1.7270073785932331e-306, -6.4762711430558126e-305, 0.0),
        (-9.25, -1.0382786071978384e-19, -9.6015947568093122e-19, 0.0),
        (-3.0, -0.0040496940948902836, -0.011945647204183927, 0.0),
        (-1.125, -0.14658133177890996, -0.10806670936085304, 0.0),
        (-0.0625, -0.029692645685672049, 0.45019708992782237, 0.0),
        (-0.001, -0.00049960105778608895, 0.4992021157051586, 0.0),
        (0.0001, 5.0003989422797368e-5, 0.50007978845581433, 0.0),
        (0.015625, 0.0079098940546857763, 0.51246593175559008, 0.0),
        (0.5, 0.34573123063700655, 0.86749512465616284, 0.0),
        (1.75, 1.6798964754883201, 1.1109261510825781, 0.0),
        (6.0, 5.9999999940804741, 1.0000000354687095, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("gelu-tanh", &[
        (-37.5, 0.0, 0.0, 0.0),
        (-9.25, -1.069637326392649e-30, -2.1182616719926067e-29, 0.0),
        (-3.0, -0.0036373920817730188, -0.011584166630969726, 0.0),
        (-1.125, -0.14677521018757396, -0.10777172369053788, 0.0),
        (-0.0625, -0.029692650693718542, 0.45019741000875209, 0.0),
        (-0.001, -0.00049960105778641804, 0.49920211570647498, 0.0),
        (0.0001, 5.0003989422797335e-5, 0.50007978845581301, 0.0),
        (0.015625, 0.0079098940350733776, 0.51246592673524063, 0.0),
        (0.5, 0.34571400982514392, 0.86736990353464231, 0.0),
        (1.75, 1.6797953823412513, 1.1115969813872029, 0.0),
        (6.0, 5.9999999999156035, 1.0000000007709974, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("psoftplus:10", &[
        (-37.5, 1.3790159402541388e-164, 1.3790159402541388e-163, -5.1850999353555618e-163),
        (-9.25, 6.7260551496447081e-42, 6.7260551496447081e-41, -6.2888615649178021e-41),
        (-3.0, 9.3576229688397368e-15, 9.357622968839299e-14, -2.9008631203401871e-14),
        (-1.125, 1.300721305990505e-6, 1.3007128466476033e-5, -1.5933740830776042e-6),
        (-0.0625, 0.042870067827651864, 0.34864513533394576, -0.0064660388786023473),
        (-0.001, 0.068815968050786232, 0.497500020833125, -0.0069313468071619357),
        (0.0001, 0.06936473055599401, 0.50024999997916667, -0.0069314705555996093),
        (0.015625, 0.077432083900726809, 0.53898322068768409, -0.0069010471077481745),
        (0.5, 0.50067153484891181, 0.99330714907571514, -0.00040179603110542346),
        (1.75, 1.7500000025109991, 0.99999997489000907, -4.6453483246342675e-9),
        (6.0, 6.0, 1.0, -5.3414715652448774e-27),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("psoftplus:2.5", &[
        (-37.5, 7.7081882572775705e-42, 1.9270470643193926e-41, -2.9214033495081992e-40),
        (-9.25, 3.6224307957051217e-11, 9.0560769888527415e-11, -3.4956457177037192e-10),
        (-3.0, 0.00022117259014431855, 0.00055277863692359952, -0.00075180340036604684),
        (-1.125, 0.023328192112099533, 0.056652425307973835, -0.034824868233428039),
        (-0.0625, 0.24722833560290723, 0.46101677931231591, -0.11041675372397079),
        (-0.001, 0.27675918472389674, 0.49937500032552063, -0.11090342388968891),
        (0.0001, 0.27730887534897812, 0.50006249999967448, -0.11090354763959126),
        (0.015625, 0.28514766131914559, 0.50976438342601599, -0.11087303713124564),
        (0.5, 0.60077163253814916, 0.77729986117469115, -0.084848680780321433),
        (1.75, 1.7550038281104693, 0.98756834914681418, -0.010703686841417797),
        (6.0, 6.0000001223609095, 0.99999969409777307, -7.8310970841569462e-7),
        (29.0, 29.0, 1.0, -3.8375794845529356e-31),
    ]),
    ("elu:1", &[
        (-37.5, -0.99999999999999995, 5.1755550058018685e-17, -0.99999999999999995),
        (-9.25, -0.99990388834793861, 9.6111652061394694e-5, -0.99990388834793861),
        (-3.0, -0.95021293163213606, 0.049787068367863943, -0.95021293163213606),
        (-1.125, -0.67534753264165027, 0.32465246735834973, -0.67534753264165027),
        (-0.0625, -0.060586937186524214, 0.93941306281347579, -0.060586937186524214),
        (-0.001, -0.00099950016662500835, 0.99900049983337499, -0.00099950016662500835),
        (0.0001, 0.0001, 1.0, 0.0),
        (0.015625, 0.015625, 1.0, 0.0),
        (0.5, 0.5, 1.0, 0.0),
        (1.75, 1.75, 1.0, 0.0),
        (6.0, 6.0, 1.0, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("elu:0.5", &[
        (-37.5, -0.49999999999999997, 2.5877775029009343e-17, -0.99999999999999995),
        (-9.25, -0.4999519441739693, 4.8055826030697347e-5, -0.99990388834793861),
        (-3.0, -0.47510646581606803, 0.024893534183931971, -0.95021293163213606),
        (-1.125, -0.33767376632082514, 0.16232623367917486, -0.67534753264165027),
        (-0.0625, -0.030293468593262107, 0.46970653140673789, -0.060586937186524214),
        (-0.001, -0.00049975008331250418, 0.4995002499166875, -0.00099950016662500835),
        (0.0001, 0.0001, 1.0, 0.0),
        (0.015625, 0.015625, 1.0, 0.0),
        (0.5, 0.5, 1.0, 0.0),
        (1.75, 1.75, 1.0, 0.0),
        (6.0, 6.0, 1.0, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("celu:1", &[
        (-37.5, -0.99999999999999995, 5.1755550058018685e-17, -0.99999999999999801),
        (-9.25, -0.99990388834793861, 9.6111652061394694e-5, -0.9990148555663707),
        (-3.0, -0.95021293163213606, 0.049787068367863943, -0.80085172652854423),
        (-1.125, -0.67534753264165027, 0.32465246735834973, -0.31011350686350682),
        (-0.0625, -0.060586937186524214, 0.93941306281347579, -0.0018736207606819772),
        (-0.001, -0.00099950016662500835, 0.99900049983337499, -4.996667916333403e-7),
        (0.0001, 0.0001, 1.0, 0.0),
        (0.015625, 0.015625, 1.0, 0.0),
        (0.5, 0.5, 1.0, 0.0),
        (1.75, 1.75, 1.0, 0.0),
        (6.0, 6.0, 1.0, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("celu:2", &[
        (-37.5, -1.9999999856117339, 7.1941330303253835e-9, -0.99999985791587265),
        (-9.25, -1.9803926899283563, 0.0098036550358218283, -0.94485444042350222),
        (-3.0, -1.5537396797031403, 0.22313016014842983, -0.44217459962892543),
        (-1.125, -0.86043435053815398, 0.56978282473092301, -0.1097143363579328),
        (-0.0625, -0.061533531047311836, 0.96923323447634408, -0.00047822694627016559),
        (-0.001, -0.00099975004166145887, 0.99950012497916927, -1.2495834114479178e-7),
        (0.0001, 0.0001, 1.0, 0.0),
        (0.015625, 0.015625, 1.0, 0.0),
        (0.5, 0.5, 1.0, 0.0),
        (1.75, 1.75, 1.0, 0.0),
        (6.0, 6.0, 1.0, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("smooth-relu:400", &[
        (-37.5, 0.0, 0.0, 0.0),
        (-9.25, 0.0, 0.0, 0.0),
        (-3.0, 0.0, 0.0, 0.0),
        (-1.125, 0.0, 0.0, 0.0),
        (-0.0625, 0.0, 0.0, 0.0),
        (-0.001, 0.0, 0.0, 0.0),
        (0.0001, 1.9482171167967595e-6, 0.038461538461538463, 4.7448418233927175e-9),
        (0.015625, 0.010672496327833541, 0.86206896551724138, 6.9933281459333877e-6),
        (0.5, 0.48674173772985231, 0.99502487562189055, 2.6926750202732408e-5),
        (1.75, 1.7336187302824135, 0.9985734664764622, 3.4712090128488299e-5),
        (6.0, 5.9805408985094469, 0.99958350687213661, 4.2400356808431979e-5),
        (29.0, 28.976602883549311, 0.99991380053443669, 5.2243329873381063e-5),
    ]),
    ("smooth-relu:3", &[
        (-37.5, 0.0, 0.0, 0.0),
        (-9.25, 0.0, 0.0, 0.0),
        (-3.0, 0.0, 0.0, 0.0),
        (-1.125, 0.0, 0.0, 0.0),
        (-0.0625, 0.0, 0.0, 0.0),
        (-0.001, 0.0, 0.0, 0.0),
        (0.0001, 1.4997000674838042e-8, 0.00029991002699190244, 4.998000674784068e-9),
        (0.015625, 0.00035515465623526561, 0.044776119402985075, 0.00011482406981212539),
        (0.5, 0.19456975604194831, 0.6, 0.035143414652683896),
        (1.75, 1.1391395120838966, 0.84, 0.11028682930536779),
        (6.0, 5.0185203402778532, 0.94736842105263158, 0.2218967286793121),
        (29.0, 27.507554395173931, 0.98863636363636364, 0.38763338342687143),
    ]),
    ("relu6", &[
        (-37.5, 0.0, 0.0, 0.0),
        (-9.25, 0.0, 0.0, 0.0),
        (-3.0, 0.0, 0.0, 0.0),
        (-1.125, 0.0, 0.0, 0.0),
        (-0.0625, 0.0, 0.0, 0.0),
        (-0.001, 0.0, 0.0, 0.0),
        (0.0001, 0.0001, 1.0, 0.0),
        (0.015625, 0.015625, 1.0, 0.0),
        (0.5, 0.5, 1.0, 0.0),
        (1.75, 1.75, 1.0, 0.0),
        (6.0, 6.0, 0.0, 0.0),
        (29.0, 6.0, 0.0, 0.0),
    ]),
    ("mish", &[
        (-37.5, -1.9408331271757007e-15, -1.8890775771176819e-15, 0.0),
        (-9.25, -0.00088899005836341161, -0.00079284030182273186, 0.0),
        (-3.0, -0.14564746127562459, -0.093393114532320836, 0.0),
        (-1.125, -0.30821537635124565, 0.01894393647813943, 0.0),
        (-0.0625, -0.036246792801211678, 0.55985721883998273, 0.0),
        (-0.001, -0.0005996799840458663, 0.59935995218346475, 0.0),
        (0.0001, 6.0003199983995416e-5, 0.60006399951981653, 0.0),
        (0.015625, 0.0094530612307436497, 0.60998758131272161, 0.0),
        (0.5, 0.3752452113048951, 0.88642437535772726, 0.0),
        (1.75, 1.6749324241318017, 1.0822689489173323, 0.0),
        (6.0, 5.9999266340652527, 1.0001341405062098, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
    ("swish:1", &[
        (-37.5, -1.9408331271757006e-15, -1.8890775771176818e-15, 7.2781242269088769e-14),
        (-9.25, -0.00088894734337013403, -0.00079275949788371037, 0.0082219726987944549),
        (-3.0, -0.14227761953270034, -0.088104106015169617, 0.40658993757820919),
        (-1.125, -0.27572063977391817, 0.036939369978310201, 0.2341638485483192),
        (-0.0625, -0.030273755267311523, 0.468770333137434, 0.000975609446221898),
        (-0.001, -0.00049975000002083334, 0.49950000008333332, 2.4999993750001043e-7),
        (0.0001, 5.0002499999997919e-5, 0.50004999999991667, 2.4999999937500003e-9),
        (0.015625, 0.0078735339145168829, 0.50781218212020235, 6.1031431111278746e-5),
        (0.5, 0.31122966560092728, 0.73996118730265181, 0.058750928050398622),
        (1.75, 1.4909174034445434, 1.0726789460449571, 0.38627075213413152),
        (6.0, 5.9851642610601914, 1.0123264325915255, 0.088794334488961721),
        (29.0, 28.999999999992623, 1.0000000000071223, 2.1392228094429039e-10),
    ]),
    ("swish:2.5", &[
        (-37.5, -7.2264264911977224e-40, -1.7873361521562367e-39, 2.7099099341991459e-38),
        (-9.25, -8.3768712146887859e-10, -2.0036570335940151e-9, 7.7486058728854073e-9),
        (-3.0, -0.0016583359107707985, -0.0035907694083426035, 0.0049722576543194436),
        (-1.125, -0.063733978471470565, -0.09365580973336508, 0.067638705768602512),
        (-0.0625, -0.028813548707019744, 0.42219173110843851, 0.00097062620509693484),
        (-0.001, -0.00049937500032552064, 0.49875000130208211, 2.4999960937540691e-7),
        (0.0001, 5.000624999996745e-5, 0.50012499999869792, 2.4999999609375006e-9),
        (0.015625, 0.0079650684910314999, 0.51952628408290309, 6.1011879105544371e-5),
        (0.5, 0.38864993058734557, 0.99368084491531242, 0.043276196748124254),
        (1.75, 1.7282446110069248, 1.0412806831291593, 0.037598633787641554),
        (6.0, 5.9999981645866384, 1.0000042826297733, 1.1012476800580282e-5),
        (29.0, 29.0, 1.0, 2.7443914511131113e-29),
    ]),
    ("shifted-swish:1,0.00000001", &[
        (-37.5, 3.750000018091669e-7, -1.0000001989077597e-8, 7.2781242996901199e-14),
        (-9.25, -0.00088885485225868255, -0.00079276950581140543, 0.0082219727810141827),
        (-3.0, -0.14227759095547625, -0.088104116896210786, 0.40658994164410861),
        (-1.125, -0.27572063128112449, 0.036939360347703804, 0.23416385088995771),
        (-0.0625, -0.030273754945049073, 0.46877032782513728, 0.00097560945597799256),
        (-0.001, -0.00049974999501833329, 0.49949999507833327, 2.4999994000000983e-7),
        (0.0001, 5.0002499500022914e-5, 0.50004999500041662, 2.5000000187500004e-9),
        (0.015625, 0.0078735338370022213, 0.50781217719832412, 6.1031431721593063e-5),
        (0.5, 0.31122966371322392, 0.73996118470226366, 0.058750928637907909),
        (1.75, 1.4909174008537174, 1.0726789467717466, 0.38627075599683908),
        (6.0, 5.985164260911834, 1.0123264327147898, 0.088794335376905075),
        (29.0, 28.999999999992623, 1.0000000000071223, 2.1392228308351322e-10),
    ]),
    ("shifted-swish:1.5,0.25", &[
        (-37.5, 12.5, -0.33333333333333333, 6.9813058532822071e-22),
        (-9.25, 3.0833217123166751, -0.33334950851577065, 0.00010749430280221799),
        (-3.0, 0.95605222947762728, -0.38388145482589383, 0.13039475666670281),
        (-1.125, 0.14084265383181389, -0.42159982656047488, 0.22230476736581357),
        (-0.0625, -0.018881637588639663, 0.27092476551127201, 0.0012992264961234418),
        (-0.001, -0.00033283333342708332, 0.33233333370833321, 3.3333314583340366e-7),
        (0.0001, 3.333833333332396e-5, 0.33343333333295833, 3.3333333145833337e-9),
        (0.015625, 0.005330398058204823, 0.3489569029397205, 8.1369033485539869e-5),
        (0.5, 0.28611913278359532, 0.79013325932900466, 0.072631664587271343),
        (1.75, 1.5923910540075321, 1.1303822199421695, 0.25718522059417634),
        (6.0, 5.9990128433921101, 1.0013160260958632, 0.0059222087887127476),
        (29.0, 29.0, 1.0, 1.4385493648733175e-16),
    ]),
    ("squareplus:4", &[
        (-37.5, 0.026647730625400429, 0.00070959766108667534, 0.0066572053645188443),
        (-9.25, 0.10687330768692496, 0.011292917280066369, 0.026416599065942358),
        (-3.0, 0.30277563773199465, 0.083974852831078158, 0.06933752452815364),
        (-1.125, 0.58484748441786371, 0.25486938018372051, 0.10894694214056866),
        (-0.0625, 0.96923816209888261, 0.48438262381113939, 0.12493900951088485),
        (-0.001, 0.99950012499999219, 0.49975000003124999, 0.12499998437500293),
        (0.0001, 1.00005000125, 0.50002499999996875, 0.12499999984375),
        (0.015625, 1.0078430171124779, 0.50390613079616714, 0.12499618547734848),
        (0.5, 1.2807764064044151, 0.62126781251816649, 0.12126781251816649),
        (1.75, 2.2037682265918312, 0.82925230393425905, 0.094072086838359729),
        (6.0, 6.1622776601683793, 0.9743416490252569, 0.039528470752104742),
        (29.0, 29.034441853748633, 0.99881516421149155, 0.0086002614519222681),
    ]),
    ("squareplus:0.3", &[
        (-37.5, 0.0019998933447095942, 5.3324801516753909e-5, 0.0066659556693131099),
        (-9.25, 0.008101013360274233, 0.00087425391081628579, 0.026979770058874795),
        (-3.0, 0.024795068197690623, 0.0081306231620352824, 0.08197822947299412),
        (-1.125, 0.063124687812109919, 0.050449326123034786, 0.19980029950087343),
        (-0.0625, 0.24438846338999932, 0.44331342655218523, 0.45349258758251818),
        (-0.001, 0.27336173518766728, 0.49908713059227247, 0.45643470386376593),
        (0.0001, 0.27391128331693766, 0.50009128709139608, 0.45643545698038088),
        (0.015625, 0.28178519053000519, 0.51425780793130617, 0.45624985380179757),
        (0.5, 0.62080992435478314, 0.83709993123162105, 0.33709993123162105),
        (1.75, 1.7918560410446124, 0.97717414775556036, 0.13633547078730296),
        (6.0, 6.0124740662784136, 0.99792959773196919, 0.041494133144330766),
        (29.0, 29.002585976300916, 0.99991084430372824, 0.0086191524879953145),
    ]),
    ("leaky-relu:0.01", &[
        (-37.5, -0.37500000000000001, 0.01, -37.5),
        (-9.25, -0.092500000000000002, 0.01, -9.25),
        (-3.0, -0.030000000000000001, 0.01, -3.0),
        (-1.125, -0.01125, 0.01, -1.125),
        (-0.0625, -0.00062500000000000001, 0.01, -0.0625),
        (-0.001, -1.0e-5, 0.01, -0.001),
        (0.0001, 0.0001, 1.0, 0.0),
        (0.015625, 0.015625, 1.0, 0.0),
        (0.5, 0.5, 1.0, 0.0),
        (1.75, 1.75, 1.0, 0.0),
        (6.0, 6.0, 1.0, 0.0),
        (29.0, 29.0, 1.0, 0.0),
    ]),
];

/// The default of every curve, and some other parameters.
fn curves() -> Vec<Curve> {
    let others = [
        "psoftplus:1",
        "psoftplus:40",
        "elu:0.5",
        "celu:2",
        "smooth-relu:3",
        "swish:2.5",
        "shifted-swish:1.5,0.25",
        "squareplus:0.3",
        "leaky-relu:0.2",
    ];
    let others = others.iter().map(|name| name.parse().unwrap());
    Curve::ALL.iter().copied().chain(others).collect()
}

/// Values and input gradients on a device, for an upstream gradient of ones.
fn run(x: &[f32], pair: impl Into<Pair>, device: &Device) -> (Vec<f32>, Vec<f32>) {
    let x = vector(x, &device.clone().autodiff()).require_grad();
    let y = activate(x.clone(), pair);
    let grads = y.clone().sum().backward();
    (to_vec(y.inner()), to_vec(x.grad(&grads).unwrap()))
}

/// |got - want| relative to max(1, |want|).
fn error(got: f32, want: f64) -> f64 {
    (f64::from(got) - want).abs() / want.abs().max(1.0)
}

#[test]
fn reference_agrees_with_independent_values() {
    for (name, rows) in KNOWN {
        let curve: Curve = name.parse().unwrap();
        for &(x, value, slope, by_parameter) in *rows {
            let close = |got: f64, want: f64| (got - want).abs() <= 2e-14 * want.abs().max(1e-3);
            assert!(close(curve.value(x), value), "{name}({x}) = {}", curve.value(x));
            assert!(close(curve.derivative(x), slope), "{name}'({x}) = {}", curve.derivative(x));
            let got = curve.parameter_derivatives(x).first().copied().unwrap_or(0.0);
            assert!(close(got, by_parameter), "d{name}/da at {x} = {got}");
        }
    }
}

proptest! {
    #[test]
    fn reference_agrees_with_finite_differences(x in -30.0f64..30.0) {
        let h = 1e-5;
        for curve in curves() {
            // Across a kink of the curve or of its derivative, differences mean nothing.
            prop_assume!(x.abs() > 2.0 * h);
            // Across the upper kink of ReLU6.
            prop_assume!((x - 6.0).abs() > 2.0 * h);
            let scale = 1.0 + curve.parameters().first().copied().unwrap_or(1.0).powi(3);
            let difference = (curve.value(x + h) - curve.value(x - h)) / (2.0 * h);
            let error = (curve.derivative(x) - difference).abs();
            prop_assert!(error < 1e-9 * scale.min(1e4), "{curve}'({x}): {error}");
            let parameters = curve.parameters();
            for (i, derivative) in curve.parameter_derivatives(x).into_iter().enumerate() {
                let h = 1e-5 * parameters[i].max(1e-4);
                let other = |change: f64| -> Curve {
                    let mut parameters = parameters.clone();
                    parameters[i] += change;
                    let text: Vec<String> = parameters.iter().map(f64::to_string).collect();
                    format!("{}:{}", curve.name(), text.join(",")).parse().unwrap()
                };
                let difference = (other(h).value(x) - other(-h).value(x)) / (2.0 * h);
                let error = (derivative - difference).abs();
                let bound = if parameters[i] < 1e-4 { 1e-3 } else { 1e-8 };
                prop_assert!(error < bound * x.abs().max(1.0), "d{curve} at {x}: {error}");
            }
        }
    }
}

#[test]
fn values_and_gradients_agree_with_the_reference() {
    let mut x: Vec<f32> = (0..=40_000).map(|i| -50.0 + i as f32 * 0.0025).collect();
    for exponent in -300..0 {
        let tiny = 10f32.powf(exponent as f32 / 10.0);
        x.extend([tiny, -tiny]);
    }
    for (device_name, device) in devices() {
        for curve in curves() {
            let (y, dx) = run(&x, curve, &device);
            for ((&x, &y), &dx) in x.iter().zip(&y).zip(&dx) {
                let at = f64::from(x);
                let (value, slope) = (error(y, curve.value(at)), error(dx, curve.derivative(at)));
                assert!(value <= 1e-6, "{device_name} {curve}({x}) = {y}: {value:e}");
                assert!(slope <= 1e-6, "{device_name} {curve}'({x}) = {dx}: {slope:e}");
            }
        }
    }
}

#[test]
fn ends_and_zero_are_defined() {
    let left = [-f32::INFINITY, -f32::MAX, -1e30, -1e4, -0.0, 0.0];
    // At the third, -x log2(e) cancels what rounding to an exponent adds.
    let right = [1e4, 8e6, 17_443_600.0, 1e30, f32::MAX, f32::INFINITY];
    let x = [left, right].concat();
    for (device_name, device) in devices() {
        for curve in curves() {
            let (y, dx) = run(&x, curve, &device);
            for i in 0..x.len() {
                let at = format!("{device_name} {curve} at {}", x[i]);
                if x[i] <= -1e4 {
                    let want = match curve {
                        Curve::Elu(a) | Curve::Celu(a) => [-a as f32, 0.0],
                        Curve::LeakyRelu(a) => [a as f32 * x[i], a as f32],
                        Curve::ShiftedSwish(_, b) => {
                            let slope = (-b / (1.0 - b)) as f32;
                            [slope * x[i], slope]
                        }
                        // a/(4 |x|), and a slope that is a/(4 x^2).
                        Curve::Squareplus(_) => {
                            assert!((0.0..=1e-4).contains(&y[i]) && (0.0..=1e-8).contains(&dx[i]));
                            [y[i], dx[i]]
                        }
                        _ => [0.0, 0.0],
                    };
                    // In place of zero, GELU and any slope may be what an exponential is held at.
                    let held = if curve == Curve::Gelu { 1e-20 } else { 1e-30 };
                    let close = |got: f32, want: f32| {
                        (got - want).abs() < held || got == want || (got / want - 1.0).abs() < 1e-6
                    };
                    assert!(
                        close(y[i], want[0]) && close(dx[i], want[1]),
                        "{at}: {} {}",
                        y[i],
                        dx[i]
                    );
                } else if curve == Curve::Relu6 && x[i] >= 1e4 {
                    assert_eq!((y[i], dx[i]), (6.0, 0.0), "{at}");
                } else if x[i] >= 1e4 {
                    assert!(y[i] == x[i] || (y[i] / x[i] - 1.0).abs() < 1e-3, "{at}");
                    assert!((dx[i] - 1.0).abs() < 1e-3, "{at}: {}", dx[i]);
                } else {
                    assert!(error(y[i], curve.value(0.0)) < 1e-6, "{at}: {}", y[i]);
                    assert!(error(dx[i], curve.derivative(0.0)) < 1e-6, "{at}: {}", dx[i]);
                }
            }
        }
    }
}

#[test]
fn nan_gives_nan() {
    for (device_name, device) in devices() {
        for curve in curves() {
            // NaN of several bits: CUDA's, of memory full of ones, with a payload.
            let nans = [0x7fff_ffff, 0xffff_ffff, 0x7fc0_0001].map(f32::from_bits);
            let x = [1.0, f32::NAN, nans[0], nans[1], nans[2], -1.0];
            let (y, dx) = run(&x, curve, &device);
            let is_nan = |v: Vec<f32>| v.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
            let expected = [false, true, true, true, true, false];
            assert_eq!(is_nan(y), expected, "{device_name} {curve}");
            assert_eq!(is_nan(dx), expected, "{device_name} {curve}'");
        }
    }
}

#[test]
fn every_layout_gives_the_same_numbers() {
    let values: Vec<f32> = (0..2 * 3 * 4 * 5).map(|i| (i as f32 - 60.0) / 9.0).collect();
    type View = fn(Tensor<4>) -> Tensor<4>;
    let layouts: [(&str, View); 7] = [
        ("plain", |x| x),
        ("permuted", |x| x.permute([0, 2, 3, 1])),
        ("transposed", |x| x.swap_dims(2, 3)),
        ("sliced rows", |x| x.slice([1..2, 0..3])),
        ("sliced columns", |x| x.slice([0..2, 1..3, 1..3, 2..4])),
        ("flipped", |x| x.flip([3])),
        ("expanded", |x| x.slice([0..1, 0..1, 0..4, 0..5]).expand([2, 3, 4, 5])),
    ];
    for (device_name, device) in devices() {
        let whole = || -> Tensor<4> {
            Tensor::from_data(TensorData::new(values.clone(), [2, 3, 4, 5]), &device)
        };
        for (layout, view) in layouts {
            for curve in [Curve::Silu, Curve::Elu(1.0)] {
                let x = view(whole());
                let want: Vec<f64> =
                    to_vec(x.clone()).iter().map(|x| curve.value((*x).into())).collect();
                let got = activate(x.clone(), curve);
                assert_eq!(got.dims(), x.dims());
                for (got, want) in to_vec(got).iter().zip(&want) {
                    assert!(error(*got, *want) < 1e-6, "{device_name} {layout}");
                }
                // The gradient meets the input in another layout than its own.
                let leaf = Tensor::from_inner(whole()).require_grad();
                let weights = Tensor::from_inner(x.clone()).flip([0, 1]);
                let grads = (activate(view(leaf.clone()), curve) * weights).sum().backward();
                let plain = Tensor::from_inner(whole()).require_grad();
                let weights = Tensor::from_inner(x).flip([0, 1]);
                let slope = view(plain.clone()).into_data().convert::<f32>();
                let slope: Vec<f32> = slope.try_into_vec::<f32>().unwrap();
                let slope = slope.iter().map(|x| curve.derivative((*x).into()) as f32);
                let slope = TensorData::new(slope.collect::<Vec<_>>(), weights.shape());
                let constant = Tensor::from_data(slope, &weights.device()) * weights;
                let want = (view(plain.clone()) * constant).sum().backward();
                let got = to_vec(leaf.grad(&grads).unwrap());
                let want = to_vec(plain.grad(&want).unwrap());
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() < 1e-5, "{device_name} {layout}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn empty_and_single_element_tensors_work() {
    for (device_name, device) in devices() {
        let autodiff = device.clone().autodiff();
        for curve in curves() {
            let empty = Tensor::<2>::zeros([0, 7], &autodiff).require_grad();
            assert_eq!(activate(empty.clone(), curve).dims(), [0, 7], "{device_name}");
            // Burn makes no tensor without axes from data, but a reshape gives one. NdArray has none, and
            // the fusion engine of the GPU backends does not take one in any operation.
            if device_name != "flex" {
                continue;
            }
            let single = vector(&[0.5], &autodiff).reshape([0usize; 0]).require_grad();
            let y = activate(single.clone(), curve);
            let grads = y.clone().backward();
            assert!(error(to_vec(y)[0], curve.value(0.5)) < 1e-6, "{device_name} {curve}");
            let dx = to_vec(single.grad(&grads).unwrap())[0];
            assert!(error(dx, curve.derivative(0.5)) < 1e-6, "{device_name} {curve}'");
        }
        let x = Tensor::<1>::zeros([0], &autodiff).require_grad();
        let a = vector(&[3.0], &autodiff).require_grad();
        let y = activate_with_parameters(x, a.clone(), Curve::SmoothRelu(1.0));
        let grads = y.sum().backward();
        assert_eq!(to_vec(a.grad(&grads).unwrap()), [0.0], "{device_name}");
    }
}

/// On CubeCL's runtimes, whose indices have 32 bits where that is enough; WebGPU has no buffers of that size. Needs
/// 9 GB: `cargo test -p sat-core --features cpu --test suite -- --ignored`.
#[test]
#[ignore = "a tensor of more than 2^32 numbers"]
fn more_numbers_than_32_bits_can_count() {
    // Odd, so that numbers are taken one by one, each by an index of its own.
    let count = (1usize << 32) + 4095;
    for (device_name, device) in devices() {
        if !matches!(device_name, "cpu" | "cuda") {
            continue;
        }
        let x = Tensor::<1>::full([count], 1.5, (&device, DType::F16));
        let y = activate(x, Curve::Silu);
        for start in [0, count / 2 - 8, (1 << 32) - 8, count - 16] {
            let got = to_vec(y.clone().slice([start..start + 16]).cast(FloatDType::F32));
            let right = |y: &f32| error(*y, Curve::Silu.value(1.5)) < 1e-3;
            assert!(got.iter().all(right), "{device_name} at {start}: {got:?}");
        }
    }
}

#[test]
fn nobody_elses_tensor_changes() {
    let values: Vec<f32> = (0..200_000).map(|i| (i as f32 - 100_000.0) / 18_000.0).collect();
    for (device_name, device) in devices() {
        for curve in curves() {
            // A clone, a view, and a tensor that is also needed elsewhere in the graph.
            let x = vector(&values, &device);
            let (clone, view) = (x.clone(), x.clone().slice([10..20]));
            let y = activate(x, curve);
            assert!(to_vec(clone) == values, "{device_name} {curve}");
            assert!(to_vec(view) == values[10..20], "{device_name} {curve}");

            let leaf = vector(&values, &device.clone().autodiff()).require_grad();
            let inner = leaf.clone() * 1.0;
            let z = activate(inner.clone(), curve);
            let twice = activate(inner.clone(), curve);
            for (z, y) in to_vec(z.clone().inner()).iter().zip(to_vec(y)) {
                assert!((z - y).abs() <= 1e-6 * y.abs().max(1.0), "{device_name} {curve}: {z} {y}");
            }
            let grads = (z + twice + inner.clone()).sum().backward();
            assert!(to_vec(inner.inner()) == values, "{device_name} {curve}");
            let dx = to_vec(leaf.grad(&grads).unwrap());
            for (dx, x) in dx.iter().zip(&values) {
                let want = 2.0 * curve.derivative((*x).into()) + 1.0;
                assert!(error(*dx, want) < 1e-6, "{device_name} {curve}'({x}) = {dx}, {want}");
            }
        }
    }
}

/// A parameter that is a constant of the kernel is the `f32` number that a tensor would hold, and so is what is
/// computed from it: if it had more digits there, what is cut off in the end would be missing.
#[test]
fn constant_parameters_give_what_learned_ones_give() {
    // a x from 1 to 4.5, where two large numbers cancel.
    let t: Vec<f32> = (0..100_000).map(|i| 1.0 + i as f32 * 3.5e-5).collect();
    for (device_name, device) in devices() {
        for parameter in [0.7, 400.0, 3.0] {
            let curve = Curve::SmoothRelu(parameter);
            let x: Vec<f32> = t.iter().map(|t| t / parameter as f32).collect();
            let constant = to_vec(activate(vector(&x, &device), curve));
            let learned = vector(&[parameter as f32], &device);
            let learned = to_vec(activate_with_parameters(vector(&x, &device), learned, curve));
            let other =
                constant.iter().zip(&learned).filter(|(constant, learned)| constant != learned);
            let share = other.count() as f64 / t.len() as f64;
            assert!(share < 0.01, "{device_name} {curve}: {share} of the numbers differ");
        }
    }
}

#[test]
fn parameter_gradients_are_right() {
    // More than one chunk, and a length no vector width divides.
    let n = 270_003;
    let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % n) as f32 / n as f32 * 12.0 - 6.0).collect();
    let weights: Vec<f32> = (0..n).map(|i| ((i * 31) % 17) as f32 / 8.0 - 1.0).collect();
    let parametric = [
        Curve::SmoothRelu(400.0),
        Curve::SmoothRelu(0.7),
        Curve::ParametricSoftplus(2.0),
        Curve::Elu(0.8),
        Curve::Celu(1.3),
        Curve::Swish(1.7),
        Curve::ShiftedSwish(1.5, 0.25),
        Curve::Squareplus(2.0),
        Curve::LeakyRelu(0.1),
    ];
    for (device_name, device) in devices() {
        let device = device.autodiff();
        for curve in parametric {
            let leaf = vector(&x, &device).require_grad();
            let start: Vec<f32> = curve.parameters().iter().map(|a| *a as f32).collect();
            let parameters = vector(&start, &device).require_grad();
            let y = activate_with_parameters(leaf.clone(), parameters.clone(), curve);
            let grads = (y.clone() * vector(&weights, &device)).sum().backward();
            let gradient = to_vec(parameters.grad(&grads).unwrap());
            assert_eq!(gradient.len(), start.len());
            for (i, got) in gradient.into_iter().enumerate() {
                let slope = |x: &f32| curve.parameter_derivatives((*x).into())[i];
                let terms = x.iter().zip(&weights).map(|(x, w)| f64::from(*w) * slope(x));
                let (want, size) =
                    (terms.sum::<f64>(), x.iter().map(|x| slope(x).abs()).sum::<f64>());
                let difference = (f64::from(got) - want).abs();
                assert!(difference < 3e-6 * size, "{device_name} {curve}, {i}: {got}, not {want}");
            }
            let dx = to_vec(leaf.grad(&grads).unwrap());
            let y = to_vec(y.inner());
            for i in (0..n).step_by(101) {
                let want = f64::from(weights[i]) * curve.derivative(x[i].into());
                assert!(error(dx[i], want) < 1e-6, "{device_name} {curve}'({})", x[i]);
                assert!(error(y[i], curve.value(x[i].into())) < 1e-6, "{device_name} {curve}");
            }
        }
    }
}

#[test]
fn a_pair_takes_its_value_from_one_curve_and_its_gradient_from_the_other() {
    let x: Vec<f32> = (-50..50).map(|i| i as f32 / 10.0 + 0.05).collect();
    for (device_name, device) in devices() {
        let config: ActivationConfig = "relu~psoftplus:10".parse().unwrap();
        let device = device.autodiff();
        let leaf = vector(&x, &device).require_grad();
        let y = config.init(&device).forward(leaf.clone());
        let grads = y.clone().sum().backward();
        let (y, dx) = (to_vec(y.inner()), to_vec(leaf.grad(&grads).unwrap()));
        for ((x, y), dx) in x.iter().zip(y).zip(dx) {
            assert_eq!(y, x.max(0.0), "{device_name}");
            let want = 1.0 / (1.0 + (-10.0 * f64::from(*x)).exp());
            assert!(error(dx, want) < 1e-6, "{device_name} at {x}: {dx}, not {want}");
        }

        // The learnable activation keeps its parameter's own gradient under a foreign curve.
        let config =
            ActivationConfig::SMOOTH_RELU_LEARNABLE.with_gradient(Gradient::Of(Curve::Silu));
        let module = config.init(&device);
        let leaf = vector(&x, &device).require_grad();
        let grads = module.forward(leaf.clone()).sum().backward();
        let dx = to_vec(leaf.grad(&grads).unwrap());
        for (x, dx) in x.iter().zip(dx) {
            assert!(error(dx, Curve::Silu.derivative((*x).into())) < 1e-6, "{device_name}");
        }
        let b = module.parameters().unwrap().val();
        let db = to_vec(b.grad(&grads).unwrap())[0];
        // db = 2 b da
        let curve = Curve::SmoothRelu(400.0);
        let want: f64 = x.iter().map(|x| 40.0 * curve.parameter_derivatives((*x).into())[0]).sum();
        assert!((f64::from(db) / want - 1.0).abs() < 1e-5, "{device_name} db = {db}, not {want}");
    }
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let x: Vec<f32> = (-500..500).map(|i| i as f32 / 100.0).collect();
    for (device_name, device) in devices() {
        let device = device.autodiff();
        let run = |strategy| {
            let leaf =
                vector(&x, &device).with_gradient_checkpointing_strategy(strategy).require_grad();
            let a = vector(&[4.0], &device)
                .with_gradient_checkpointing_strategy(strategy)
                .require_grad();
            let y = leaf.clone().silu().gelu();
            let y = activate_with_parameters(y, a.clone(), Curve::SmoothRelu(1.0)).elu(1.0);
            let grads = y.sum().backward();
            (to_vec(leaf.grad(&grads).unwrap()), to_vec(a.grad(&grads).unwrap()))
        };
        let plain = run(GradientCheckpointingStrategy::Disabled);
        let recomputed = run(GradientCheckpointingStrategy::Balanced);
        // Not to the bit: fusion groups the recomputed operations in another way.
        for (plain, recomputed) in [(&plain.0, &recomputed.0), (&plain.1, &recomputed.1)] {
            for (plain, again) in plain.iter().zip(recomputed) {
                let close = (plain - again).abs() <= 1e-5 * plain.abs().max(1.0);
                assert!(close, "{device_name}: {plain}, recomputed {again}");
            }
        }
    }
}

#[test]
fn other_number_types_are_computed_in_f32_or_better() {
    let x: Vec<f32> = (-400..400).map(|i| i as f32 / 16.0).collect();
    for (device_name, device) in devices() {
        for (dtype, tolerance) in [
            (FloatDType::F64, 1e-12),
            (FloatDType::F16, 1.0 / 2048.0),
            (FloatDType::BF16, 1.0 / 256.0),
            (FloatDType::Flex32, 1.0 / 1024.0),
        ] {
            // WGSL has no f64 exponential, lavapipe no bf16, and the older backends no halves.
            let widely = matches!(dtype, FloatDType::F16 | FloatDType::Flex32);
            if !device.supports_dtype(dtype) || (device_name != "flex" && !widely) {
                continue;
            }
            for curve in curves() {
                let x = vector(&x, &device.clone().autodiff()).cast(dtype);
                let leaf = x.clone().detach().require_grad();
                let y = activate(leaf.clone(), curve);
                // NdArray keeps flex32 as f32.
                let kept = if dtype == FloatDType::Flex32 { x.dtype() } else { dtype.into() };
                assert_eq!(y.dtype(), kept);
                let grads = y.clone().sum().backward();
                let dx = leaf.grad(&grads).unwrap();
                let to_f64 = |t: Tensor<1>| -> Vec<f64> {
                    t.into_data().convert::<f64>().try_into_vec().unwrap()
                };
                let (x, y, dx) = (to_f64(x.inner()), to_f64(y.inner()), to_f64(dx));
                for ((x, y), dx) in x.iter().zip(y).zip(dx) {
                    let (value, slope) = (curve.value(*x), curve.derivative(*x));
                    let bound = |want: f64| tolerance * want.abs().max(1e-3);
                    assert!((y - value).abs() <= bound(value), "{dtype:?} {curve}({x}) = {y}");
                    assert!((dx - slope).abs() <= bound(slope), "{dtype:?} {curve}'({x}) = {dx}");
                }
            }
        }
    }
}

#[test]
fn learnable_smooth_relu_learns() {
    for (device_name, device) in devices() {
        let device = device.autodiff();
        let module = ActivationConfig::SMOOTH_RELU_LEARNABLE.init(&device);
        let b = module.parameters().unwrap();
        assert_eq!(to_vec(b.val()), [20.0], "{device_name}");
        let grads = module.forward(vector(&[0.5, 1.0], &device)).sum().backward();
        assert!(to_vec(b.val().grad(&grads).unwrap())[0] > 0.0, "{device_name}");
    }
}

#[test]
#[cfg(feature = "flex")]
fn parameter_gradients_come_in_every_number_type() {
    let x: Vec<f32> = (-40..40).map(|i| i as f32 / 8.0).collect();
    let curve = Curve::Elu(1.5);
    let want: f64 = x.iter().map(|x| curve.parameter_derivatives((*x).into())[0]).sum();
    for (dtype, tolerance) in
        [(FloatDType::F64, 1e-13), (FloatDType::F16, 1e-3), (FloatDType::BF16, 1e-2)]
    {
        let device = Device::flex().autodiff();
        let leaf = vector(&x, &device).cast(dtype).detach().require_grad();
        let a = vector(&[1.5], &device).cast(dtype).detach().require_grad();
        let grads = activate_with_parameters(leaf.clone(), a.clone(), curve).sum().backward();
        let da = a.grad(&grads).unwrap();
        assert_eq!(da.dtype(), dtype.into());
        let da: Vec<f64> = da.into_data().convert::<f64>().try_into_vec().unwrap();
        assert!((da[0] / want - 1.0).abs() < tolerance, "{dtype:?}: {}, not {want}", da[0]);
        let dx: Vec<f64> =
            leaf.grad(&grads).unwrap().into_data().convert::<f64>().try_into_vec().unwrap();
        for (x, dx) in x.iter().zip(dx) {
            let want = curve.derivative((*x).into());
            assert!((dx - want).abs() <= tolerance * want.abs(), "{dtype:?} at {x}");
        }
    }
}

/// In `f64` the tensor's gradient is the slope of the tensor's own values.
#[test]
#[cfg(feature = "flex")]
fn gradients_agree_with_finite_differences_of_the_tensor() {
    let x: Vec<f64> = (0..200).map(|i| (i as f64 - 99.5) / 12.0).collect();
    let values = |shift: f64, curve: Curve| -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|x| x + shift).collect();
        let data = TensorData::new(x, [200]);
        let x = Tensor::<1>::from_data(data, (&Device::flex(), burn::tensor::DType::F64));
        activate(x, curve).into_data().try_into_vec().unwrap()
    };
    let h = 1e-6;
    for curve in curves() {
        let (above, below) = (values(h, curve), values(-h, curve));
        let data = TensorData::new(x.clone(), [200]);
        let device = Device::flex().autodiff();
        let leaf = Tensor::<1>::from_data(data, (&device, burn::tensor::DType::F64)).require_grad();
        let grads = activate(leaf.clone(), curve).sum().backward();
        let dx: Vec<f64> = leaf.grad(&grads).unwrap().into_data().try_into_vec().unwrap();
        for i in 0..x.len() {
            let difference = (above[i] - below[i]) / (2.0 * h);
            assert!((dx[i] - difference).abs() < 1e-7, "{curve}'({}) = {}", x[i], dx[i]);
        }
    }
}

#[test]
fn names_round_trip() {
    for text in [
        "relu",
        "softplus",
        "psoftplus:10",
        "silu",
        "gelu",
        "gelu-tanh",
        "elu:0.5",
        "celu:2",
        "smooth-relu:400",
        "smooth-relu-learnable",
        "smooth-relu-learnable:3",
        "relu~psoftplus:10",
        "smooth-relu-learnable~silu",
        "mish",
        "relu6",
        "leaky-relu:0.01",
        "swish:1.5",
        "squareplus:4",
        "shifted-swish:1.5,0.25",
        "psilu",
        "psilu:2",
        "psilu@network",
        "pssilu",
        "pssilu:1.5,0.1@layer",
        "burn:\"Tanh\"",
        "burn:{\"HardSigmoid\":{\"alpha\":0.2,\"beta\":0.5}}",
    ] {
        let config: ActivationConfig = text.parse().unwrap();
        assert_eq!(config.to_string(), text);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        assert_eq!(serde_json::from_str::<ActivationConfig>(&json).unwrap(), config);
    }
    assert_eq!("elu".parse::<Curve>().unwrap(), Curve::Elu(1.0));
    assert_eq!("psoftplus".parse::<Curve>().unwrap(), Curve::ParametricSoftplus(10.0));
    let learnable: ActivationConfig = "smooth-relu-learnable".parse().unwrap();
    assert_eq!(
        learnable.function,
        Function::Learnable(Learnable::SmoothRelu { b: 20.0 }, Sharing::Layer)
    );
    let pair: ActivationConfig = "pssilu".parse().unwrap();
    assert_eq!(
        pair.function,
        Function::Learnable(Learnable::PsSilu { a: 1.0, b: 1e-8 }, Sharing::Network)
    );
}

#[test]
fn curves_and_learnables_are_text_in_serdes_formats() {
    for curve in Curve::ALL.iter().copied().chain([Curve::Elu(0.1), Curve::ShiftedSwish(1.5, 0.2)])
    {
        let json = serde_json::to_string(&curve).unwrap();
        assert_eq!(json, format!("\"{curve}\""));
        assert_eq!(serde_json::from_str::<Curve>(&json).unwrap(), curve);
    }
    for learnable in Learnable::ALL.iter().copied().chain([Learnable::PSilu { a: 0.1 }]) {
        let json = serde_json::to_string(&learnable).unwrap();
        assert_eq!(json, format!("\"{learnable}\""));
        assert_eq!(serde_json::from_str::<Learnable>(&json).unwrap(), learnable);
    }
    let error = serde_json::from_str::<Curve>("\"sillu\"").unwrap_err();
    assert!(error.to_string().contains("unknown activation `sillu`"), "{error}");
    assert!(serde_json::from_str::<Curve>("\"elu:-1\"").is_err());
    assert!(serde_json::from_str::<Learnable>("\"silu\"").is_err());
}

#[test]
fn messages_speak_of_what_was_typed() {
    let message = |text: &str| text.parse::<ActivationConfig>().unwrap_err().to_string();
    let range = message("smooth-relu-learnable:1e8");
    assert!(range.contains("is 1e8; it must be between 3.16"), "{range}");
    let of_b: f64 = range.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((of_b / 1e15f64.sqrt() - 1.0).abs() < 1e-12, "{range}");
    assert!(message("smooth-relu-learnable:-20").contains("is -2e1"));
    let pair = message("shifted-swish:x,1");
    assert!(pair.ends_with("takes 2 parameters, as in `shifted-swish:1,0.00000001`"), "{pair}");
    let pair = message("pssilu:x");
    assert!(pair.ends_with("takes 2 parameters, as in `pssilu:1,0.00000001`"), "{pair}");
    assert!(message("elu:x").ends_with("takes one parameter, as in `elu:1`"));
}

#[test]
fn parameters_that_are_not_used_are_not_checked() {
    for (device_name, device) in devices() {
        let x = vector(&[-1.0, 0.5], &device);
        let a = || vector(&[2.0], &device);
        let unused = to_vec(activate_with_parameters(x.clone(), a(), Curve::Swish(f64::NAN)));
        let want = to_vec(activate_with_parameters(x, a(), Curve::Swish(2.0)));
        assert_eq!(unused, want, "{device_name}");
    }
}

#[test]
#[should_panic(expected = "a parameter of activation `psoftplus`")]
fn the_gradients_parameters_are_used_and_checked() {
    let (_, device) = devices().remove(0);
    let gradient = Gradient::Of(Curve::ParametricSoftplus(-1.0));
    let pair = Pair { value: Curve::Swish(1.0), gradient };
    activate_with_parameters(vector(&[1.0], &device), vector(&[1.0], &device), pair);
}

#[test]
fn bad_names_are_told_apart() {
    let parse = |text: &str| text.parse::<ActivationConfig>().unwrap_err();
    let unknown = parse("sillu");
    assert!(matches!(unknown, ActivationError::Unknown { .. }));
    assert!(unknown.to_string().contains("gelu-tanh"), "{unknown}");
    assert!(matches!(parse(""), ActivationError::Unknown { .. }));
    assert!(matches!(parse("smooth-relu-learnablex"), ActivationError::Unknown { .. }));
    assert!(matches!(parse("silu:2"), ActivationError::ParameterCount { takes: 0, .. }));
    assert!(matches!(parse("elu:1,2"), ActivationError::ParameterCount { takes: 1, .. }));
    assert!(matches!(parse("shifted-swish:1"), ActivationError::ParameterCount { takes: 2, .. }));
    assert!(matches!(parse("pssilu:1"), ActivationError::ParameterCount { takes: 2, .. }));
    assert!(matches!(parse("silu@network"), ActivationError::Sharing { .. }));
    assert!(matches!(parse("psilu@everywhere"), ActivationError::Sharing { .. }));
    assert!(matches!(parse("burn:tan"), ActivationError::BurnConfig { .. }));
    assert!(matches!(parse("burn:\"Tanh\"~silu"), ActivationError::BurnGradient { .. }));
    assert!(matches!(parse("elu:x"), ActivationError::NotANumber { .. }));
    for bad in [
        "elu:0",
        "elu:-1",
        "celu:nan",
        "psoftplus:inf",
        "elu:1e39",
        "celu:1e-50",
        "relu~psoftplus:1e20",
        "smooth-relu-learnable:0",
        "smooth-relu-learnable:-20",
        "smooth-relu-learnable:1e200",
        "shifted-swish:1,1",
        "shifted-swish:1,0",
        "pssilu:1,-0.1",
    ] {
        assert!(matches!(parse(bad), ActivationError::Parameter { .. }), "{bad}");
    }
    assert!(matches!(parse("relu~sillu"), ActivationError::Unknown { .. }));
    assert!(matches!(parse("relu~smooth-relu-learnable"), ActivationError::NotAGradient { .. }));
    assert!(serde_json::from_str::<ActivationConfig>("\"elu:-1\"").is_err());
}
