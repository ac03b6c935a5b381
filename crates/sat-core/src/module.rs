//! What Burn's derive writes for a module, under a container name of our choice.
//!
//! Visitors and stores tell modules apart by that name, and the derive makes it of the bare name of the
//! type.

/// Implements `Module` and its display: for the fields that are modules, and those that are plain
/// numbers.
macro_rules! module {
    ($type:ident in $container:expr; $($field:ident),+ $(; $($number:ident),+)?) => {
        impl burn::module::Module for $type {
            fn collect_devices(
                &self,
                devices: Vec<burn::tensor::Device>,
            ) -> Vec<burn::tensor::Device> {
                $(let devices = self.$field.collect_devices(devices);)+
                devices
            }

            fn fork(self, device: &burn::tensor::Device) -> Self {
                Self { $($field: self.$field.fork(device),)+ $($($number: self.$number,)+)? }
            }

            fn to_device(self, device: &burn::tensor::Device) -> Self {
                Self { $($field: self.$field.to_device(device),)+ $($($number: self.$number,)+)? }
            }

            fn train(self) -> Self {
                Self { $($field: self.$field.train(),)+ $($($number: self.$number,)+)? }
            }

            fn valid(&self) -> Self {
                Self { $($field: self.$field.valid(),)+ $($($number: self.$number,)+)? }
            }

            fn materialize(self) -> Self {
                Self { $($field: self.$field.materialize(),)+ $($($number: self.$number,)+)? }
            }

            fn visit<V: burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                $(
                    visitor.enter_module(stringify!($field), $container);
                    self.$field.visit(visitor);
                    visitor.exit_module(stringify!($field), $container);
                )+
            }

            fn map<M: burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                $(
                    mapper.enter_module(stringify!($field), $container);
                    let $field = burn::module::Module::map(self.$field, mapper);
                    mapper.exit_module(stringify!($field), $container);
                )+
                Self { $($field,)+ $($($number: self.$number,)+)? }
            }
        }

        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(&burn::module::ModuleDisplay::format(self, Default::default()))
            }
        }

        impl burn::module::ModuleDisplayDefault for $type {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                content
                    .set_top_level_type(stringify!($type))
                    $(.add(stringify!($field), &self.$field))+
                    $($(.add_debug_attribute(stringify!($number), &self.$number))+)?
                    .optional()
            }

            fn num_params(&self) -> usize {
                burn::module::Module::num_params(self)
            }
        }

        impl burn::module::ModuleDisplay for $type {}
    };
}

pub(crate) use module;
